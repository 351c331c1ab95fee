"""SUN RGB-D as SUNRGBD.zip and SUNRGBDtoolbox.zip unpack: the splits of allsplit.mat as lists, files as they are.

Depth stays as released, 16 bits rotated by 3, which the probes decode. The lists name depth as it was measured,
``depth/``, as Monocular-Depth-Estimation-Toolbox's ``SUNRGBD_val_splits.txt`` does; with ``filled`` the one whose holes
were filled, ``depth_bfx/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from attn_plugins.data.convert.labels import present
from attn_plugins.data.convert.mat import loaded
from attn_plugins.data.convert.plan import Converter, Link, Options, Plan, inside, lines
from attn_plugins.data.layouts.sunrgbd import SPLITS

__all__ = ["RELEASE"]

_PLACES = ("SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat", "traintestSUNRGBD/allsplit.mat", "allsplit.mat")
_KEYS = {"train": "alltrain", "val": "alltest"}
_ROOT = "SUNRGBD"


def _splits(source: Path) -> Path | None:
    return next((source / place for place in _PLACES if (source / place).is_file()), None)


def _recognises(source: Path) -> bool:
    return (source / _ROOT).is_dir() and _splits(source) is not None


def _scene(path: Any, named_in: Path) -> str:
    """A cell's path on its authors' disk, /n/fs/sun3d/data/SUNRGBD/kv1/NYUdata/NYU0001/, below the data root."""
    text = "".join(np.ravel(path))
    _, root, below = text.rpartition(f"/{_ROOT}/")
    if not root:
        raise ValueError(f"{named_in} names {text!r}, which has no /{_ROOT}/: use SUNRGBDtoolbox.zip's own file")
    return f"{_ROOT}/{inside(below, named_in)}"


def _only(folder: Path, pattern: str, named_in: Path) -> Path:
    """The one file of a scene's folder."""
    files = present(folder, pattern)
    if len(files) != 1:
        raise ValueError(
            f"{folder} holds {len(files)} files {pattern}, not 1, and {named_in.name} names its scene: unpack "
            "SUNRGBD.zip again"
        )
    return files[0]


def _plan(source: Path, options: Options) -> Plan:
    splits = _splits(source)
    assert splits is not None, "it was recognised"
    content = loaded(splits)
    missing = [key for key in _KEYS.values() if key not in content]
    if missing:
        raise ValueError(f"{splits} has no {' and no '.join(missing)}: use SUNRGBDtoolbox.zip's own file")
    depth = "depth_bfx" if options.filled else "depth"
    items, texts = list[Link](), dict[str, str]()
    for split, name in SPLITS.items():
        pairs = []
        for cell in np.ravel(content[_KEYS[split]]):
            scene = _scene(cell, splits)
            pair = [_only(source / scene / of, kind, splits) for of, kind in (("image", "*.jpg"), (depth, "*.png"))]
            targets = [f"{scene}/{file.parent.name}/{file.name}" for file in pair]
            items += [Link(target, str(file)) for target, file in zip(targets, pair, strict=True)]
            pairs.append(" ".join(targets))
        if any(len(line.split()) != 2 for line in pairs):
            raise ValueError(
                f"{splits} names scenes with spaces, which the lists of the probes cannot have: rename them"
            )
        texts[name] = lines(pairs)
    notes = (
        "depth has its holes filled (`depth_bfx`); Monocular-Depth-Estimation-Toolbox's list, of which the published "
        "figures are, names it as measured (`depth`)",
    )
    return Plan(items, len(items), texts, (splits,), notes if options.filled else ())


RELEASE = Converter("sunrgbd-release", f"{_ROOT}/ and {_PLACES[0]}", _recognises, _plan, frozenset({"filled"}))
