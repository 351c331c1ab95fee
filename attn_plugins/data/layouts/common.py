"""What every layout shares: writing a whole root or nothing, and image files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from attn_plugins.data.scenes import Scene, render
from attn_plugins.files import read_json
from attn_plugins.progress import Progress

__all__ = [
    "MANIFEST",
    "Progress",
    "Sample",
    "build_root",
    "samples",
    "save_depth",
    "save_image",
    "save_labels",
    "save_lines",
    "void_border",
]

MANIFEST = ".scenes.json"

# Raise when a change makes the same seed give other pictures or files: an older root is then not taken for a new one.
RENDERER = 1

# Validation scenes are numbered from here, so that they stay the same whatever the number of training scenes.
VAL_START = 1_000_000


class Sample(NamedTuple):
    """One scene of a split: ``number`` counts from 0 within ``split`` ("train" or "val")."""

    split: str
    number: int
    scene: Scene


def samples(
    num_train: int,
    num_val: int,
    seed: int,
    size: tuple[int, int],
    *,
    progress: Progress | None = None,
    indoor: bool | None = None,
    far: float = 80.0,
    balanced: bool = False,
) -> Iterator[Sample]:
    """Every scene of a data set, training first; ``balanced`` makes the labels 1, 2, ... 20, 1, ... in turn."""
    done, total = 0, num_train + num_val
    for split, count, start in (("train", num_train, 0), ("val", num_val, VAL_START)):
        for number in range(count):
            label = number % 20 + 1 if balanced else None
            yield Sample(split, number, render(seed, start + number, size, label=label, indoor=indoor, far=far))
            done += 1
            if progress is not None:
                progress(done, total)


def build_root(root: str | Path, layout: str, parameters: dict[str, Any], fill: Callable[[Path], None]) -> Path:
    """Write a data set as a whole or not at all.

    ``fill`` gets an empty folder next to ``root``, which becomes ``root`` once it is complete. A root that was written
    with the same parameters is returned as it is. One process at a time writes below a parent folder; another waits and
    then finds the finished root.

    Args:
        root: where the data set is to be.
        layout: its name in ``LAYOUTS``.
        parameters: everything that decides the content, as JSON values.
        fill: writes the data set into the folder it is given.

    Raises:
        ValueError: a split without scenes, or with too many.
        FileExistsError: ``root`` holds something else. Nothing was changed.
    """
    for name in ("num_train", "num_val"):
        if not 1 <= parameters[name] <= VAL_START:
            raise ValueError(f"{name}={parameters[name]}: each split needs at least one scene, at most {VAL_START}")
    root = Path(root).absolute()
    wanted = json.loads(json.dumps({"layout": layout, "renderer": RENDERER, **parameters}))
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):  # the system lets go of it when its process dies
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            _require_same(root, wanted)
            return root
        partial = root.with_name(root.name + ".partial")
        if partial.exists():  # the lock is ours, so whoever was writing it is dead
            shutil.rmtree(partial)
        partial.mkdir()
        fill(partial)
        (partial / MANIFEST).write_text(json.dumps(wanted, indent=1) + "\n")
        partial.replace(root)
    return root


def _require_same(root: Path, wanted: dict[str, Any]) -> None:
    manifest = root / MANIFEST
    if not manifest.is_file():
        raise FileExistsError(f"{root} exists and was not written here: choose another folder, nothing was changed")
    found = read_json(manifest)
    if found != wanted:
        keys = [k for k in {**found, **wanted} if found.get(k) != wanted.get(k)]
        differences = ", ".join(f"{k}={found.get(k)!r} there, {wanted.get(k)!r} asked for" for k in keys)
        raise FileExistsError(f"{root} holds other scenes ({differences}): choose another folder or delete it")


def save_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write [H, W, 3] RGB; PNG or JPEG (quality 95) by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(image).save(path, compress_level=1)
    else:
        Image.fromarray(image).save(path, "JPEG", quality=95)


def save_labels(path: Path, labels: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> None:
    """Write [H, W] ids as an 8-bit PNG: grey, or indexed when a palette [256, 3] is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    if palette is not None:
        picture.putpalette(palette.tobytes())
    picture.save(path, compress_level=1)


def save_depth(path: Path, stored: NDArray[np.uint16]) -> None:
    """Write [H, W] as a 16-bit grey PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored).save(path, compress_level=1)


def save_lines(path: Path, lines: list[str]) -> None:
    """Write a split file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def void_border(instances: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Where a VOC mask is 255: pixels within ``width`` of a change of object, [H, W] bool.

    Args:
        instances: [H, W].
        width: pixels on each side; PASCAL VOC's border is about 5 pixels wide in all at 500 x 375.
    """
    edge = np.zeros(instances.shape, bool)
    for axis in (0, 1):
        change = np.diff(instances.astype(np.int16), axis=axis) != 0
        before = [slice(None), slice(None)]
        after = [slice(None), slice(None)]
        before[axis], after[axis] = slice(0, -1), slice(1, None)
        edge[tuple(before)] |= change
        edge[tuple(after)] |= change
    for _ in range(width - 1):
        grown = edge.copy()
        grown[1:] |= edge[:-1]
        grown[:-1] |= edge[1:]
        grown[:, 1:] |= edge[:, :-1]
        grown[:, :-1] |= edge[:, 1:]
        edge = grown
    return edge
