"""NYU Depth v2 as its authors ship it, nyu_depth_v2_labeled.mat and splits.mat, to the files that BTS makes of it.

The test images are BTS's, on which the published figures are: JPEG with a black frame where the labelled set's border
is white, the measured depth (``rawDepths``, or with ``filled`` the ``depths`` whose holes were filled) in millimetres,
cut off as a conversion to integers does, named by the kind of room and the number in the .mat.

The .mat has 795 training images; the 24,231 frames of the protocol are BTS's ``sync.zip``. Where ``sync/`` and its list
lie beside the .mat they are linked; the 795 take their place otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attn_plugins.data.convert.mat import hdf5, loaded, text
from attn_plugins.data.convert.pairs import listed, pair_links
from attn_plugins.data.convert.plan import Converter, Link, Options, Plan, Write, as_jpeg, as_png, lines
from attn_plugins.data.layouts.depth import MILLIMETRES
from attn_plugins.data.layouts.nyuv2 import SPLITS

__all__ = ["LABELED"]

_MAT, _SPLIT = "nyu_depth_v2_labeled.mat", "splits.mat"
_KEYS = {"train": "trainNdxs", "val": "testNdxs"}
_FOCAL = "518.8579"  # pixels; of the sensor's colour camera, as BTS's lists have it
_TRAIN_LIST, _SYNC = SPLITS["train"]


@dataclass(frozen=True)
class _Frame:
    """One labelled image: its number in the .mat from 0, and where it goes."""

    number: int
    image: str
    depth: str
    line: str
    split: str


def _mat_of(source: Path) -> Path:
    return source if source.is_file() else source / _MAT


def _recognises(source: Path) -> bool:
    return _mat_of(source).is_file() and _mat_of(source).name == _MAT


def _numbers(splits: Path, total: int) -> dict[str, list[int]]:
    """Numbers from 0 of the images of each split; every image is in one of them."""
    if not splits.is_file():
        raise ValueError(
            f"{splits} does not exist: put the labelled set's split file there, splits.mat of its authors' page "
            "(or of BTS's utils/)"
        )
    content = loaded(splits)
    missing = [key for key in _KEYS.values() if key not in content]
    if missing:
        raise ValueError(f"{splits} has no {' and no '.join(missing)}: use the splits.mat of NYU Depth v2's authors")
    numbers = {split: [int(n) - 1 for n in np.ravel(content[key])] for split, key in _KEYS.items()}
    together = sorted(n for split in numbers.values() for n in split)
    if together != list(range(total)):
        found = f"{len(together)} numbers from {together[0] + 1} to {together[-1] + 1}" if together else "no number"
        raise ValueError(
            f"{splits} has {found}, and the .mat images 1 to {total}, each of which has to be in one split: "
            "use the two files of one release"
        )
    return numbers


def _frames(file: Any, mat: Path, depth: str, splits: Path) -> list[_Frame]:
    """All images of the .mat, training first.

    Raises:
        ValueError: an array is missing or has another shape.
    """
    for key in ("images", depth, "sceneTypes"):
        if key not in file:
            remedy = "; --filled takes `depths` instead" if key == "rawDepths" and "depths" in file else ""
            raise ValueError(f"{mat} has no {key!r}, its keys are {', '.join(sorted(file))}{remedy}")
    shape, depths = file["images"].shape, file[depth].shape
    if len(shape) != 4 or shape[1] != 3 or depths != (shape[0], *shape[2:]):
        raise ValueError(
            f"{mat}: images {shape} and {depth} {depths} are not [N, 3, W, H] and [N, W, H], "
            "which is the reverse of MATLAB's axes"
        )
    cells = np.ravel(file["sceneTypes"])
    if len(cells) != shape[0]:
        raise ValueError(f"{mat}: sceneTypes names {len(cells)} rooms, and there are {shape[0]} images")
    frames = []
    for split, numbers in _numbers(splits, shape[0]).items():
        for number in numbers:
            room = text(file, cells[number])
            if not re.fullmatch(r"[\w-]+", room):
                raise ValueError(f"{mat}: sceneTypes calls image {number + 1} {room!r}, which is no name of a folder")
            image, stored = f"{room}/rgb_{number:05d}.jpg", f"{room}/sync_depth_{number:05d}.png"
            below = SPLITS[split][1]
            frames.append(_Frame(number, f"{below}/{image}", f"{below}/{stored}", f"{image} {stored} {_FOCAL}", split))
    return frames


def _image(images: Any, number: int) -> bytes:
    return as_jpeg(_framed(np.asarray(images[number]).T))


def _framed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 3] with BTS's black frame: of 480 x 640, rows 7 to 473 and columns 7 to 631 stay."""
    framed = np.zeros_like(image)
    framed[7:-6, 7:-8] = image[7:-6, 7:-8]
    return framed


def _depth(depths: Any, number: int) -> bytes:
    metres = np.asarray(depths[number]).T
    if not (np.isfinite(metres).all() and metres.min() >= 0 and metres.max() * MILLIMETRES <= 65535):
        raise ValueError(f"{depths.name} of image {number + 1} is from {metres.min()} to {metres.max()}: no metres")
    return as_png((metres * MILLIMETRES).astype(np.uint16))


def _read(mat: Path, make: Callable[[int], bytes], number: int, what: str) -> bytes:
    try:
        return make(number)
    except OSError as error:
        raise ValueError(f"{mat}: {what} of image {number + 1} cannot be read: {error}; download it again") from error


def _items(mat: Path, depth: str, frames: list[_Frame], sync: list[Link]) -> Iterator[Link | Write]:
    yield from sync
    with hdf5(mat) as file:
        for frame in frames:
            image, metres = partial(_image, file["images"]), partial(_depth, file[depth])
            yield Write(frame.image, partial(_read, mat, image, frame.number, "images"))
            yield Write(frame.depth, partial(_read, mat, metres, frame.number, depth))


def _plan(source: Path, options: Options) -> Plan:
    mat = _mat_of(source)
    depth, splits = "depths" if options.filled else "rawDepths", mat.with_name(_SPLIT)
    with hdf5(mat) as file:
        frames = _frames(file, mat, depth, splits)
    decided, notes, sync = [mat, splits], [], list[Link]()
    texts = {name: lines(f.line for f in frames if f.split == split) for split, (name, _) in SPLITS.items()}
    if (mat.parent / _SYNC).is_dir():
        pairs = listed(mat.with_name(_TRAIN_LIST), mat.parent / _SYNC, mat.parent / _SYNC)
        frames = [frame for frame in frames if frame.split != "train"]
        sync = pair_links(pairs, _SYNC, _SYNC)
        texts[_TRAIN_LIST] = lines(pair.line for pair in pairs)
        decided.append(mat.with_name(_TRAIN_LIST))
    else:
        trained = sum(frame.split == "train" for frame in frames)
        notes.append(
            f"{trained} training images of the labelled set, where the protocol trains on the 24,231 of BTS's "
            f"sync.zip: for those put {_SYNC}/ and {_TRAIN_LIST} beside {mat.name} and convert into another folder"
        )
    if options.filled:
        notes.append("depth has its holes filled (`depths`); the published figures are on the measured `rawDepths`")
    return Plan(_items(mat, depth, frames, sync), 2 * len(frames) + len(sync), texts, tuple(decided), tuple(notes))


LABELED = Converter("nyuv2-labeled", f"{_MAT} and {_SPLIT}", _recognises, _plan, frozenset({"filled"}))
