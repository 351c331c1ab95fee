"""Checks of NYUv2, KITTI and SUN RGB-D."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attn_plugins.data.checks.files import (
    Problem,
    counted,
    find_folders,
    is_there,
    listed_files,
    overlapping,
    read_pair,
    repeated,
    resized,
    sample,
    split_lines,
)
from attn_plugins.data.layouts import kitti, nyuv2, sunrgbd
from attn_plugins.data.layouts.depth import KITTI_SCALE, MILLIMETRES, rotate_right
from attn_plugins.results.official import OFFICIAL

__all__ = ["check_kitti", "check_nyuv2", "check_sunrgbd"]

# What conversions are met in the wild, stored units a metre.
_SCALES = {256: "1/256 m", 1000: "millimetres", 5000: "1/5000 m", 8000: "bit-rotated millimetres", 100: "centimetres"}


@dataclass(frozen=True)
class _Stored:
    """How a data set's depth is stored, and how deep (metres) its 99.5th percentile can be.

    ``size`` tells whether a map's (H, W) is one of the release's, which ``sizes`` names.
    """

    scale: int
    low: float
    high: float
    rotated: bool = False
    size: Callable[[int, int], bool] | None = None
    sizes: str = ""


_STORED_NYUV2 = _Stored(
    MILLIMETRES, 2.7, 10.5, size=lambda height, width: (height, width) == (480, 640), sizes="480x640"
)
_STORED_KITTI = _Stored(
    KITTI_SCALE,
    15,
    110,
    size=lambda height, width: height >= 352 and width >= 1216,
    sizes="370x1224 to 376x1242, and the probe crops 352x1216",
)
_STORED_SUNRGBD = _Stored(MILLIMETRES, 2.7, 20.0, rotated=True)


def _check_maps(pairs: list[tuple[Path, Path]], stored: _Stored) -> list[Problem]:
    """Whether sampled depth maps are 16-bit, not empty, and in the expected unit."""
    problems: dict[str, Problem] = {}
    values: list[NDArray[np.uint16]] = []
    empty: list[Path] = []
    sampled = sample(pairs)
    for image, path in sampled:
        broken, target = read_pair(image, path)
        for problem in broken:
            problems.setdefault(problem.kind, problem)
        if target is None:
            continue
        mode, pixels = target
        for problem in resized(path, pixels.shape[:2], stored.size, stored.sizes):
            problems.setdefault(problem.kind, problem)
        if pixels.ndim != 2 or not mode.startswith("I"):
            remedy = "use the release's 16-bit PNGs; a picture for viewing has lost the metres"
            found = f"is a {mode} picture, not 16-bit depth"
            problems.setdefault("depth-not-16-bit", Problem("depth-not-16-bit", path, found, remedy))
            continue
        valid = pixels[pixels > 0].astype(np.uint16)
        if valid.size:
            values.append(valid)
        else:
            empty.append(path)
    if empty:
        found = f"{len(empty)} of {len(sampled)} sampled depth maps hold no measurement (all 0)"
        remedy = "unpack them again, or take their lines out of the split file"
        problems["depth-empty"] = Problem("depth-empty", empty[0], found, remedy)
    if values:
        wrong_unit = _check_unit(sampled[0][1], np.concatenate(values), stored)
        if wrong_unit is not None:
            problems[wrong_unit.kind] = wrong_unit
    return list(problems.values())


def _check_unit(path: Path, values: NDArray[np.uint16], stored: _Stored) -> Problem | None:
    as_stored = float(np.percentile(values, 99.5))
    deep = float(np.percentile(rotate_right(values), 99.5)) if stored.rotated else as_stored
    if stored.low <= deep / stored.scale <= stored.high:
        return None
    if stored.rotated and deep > stored.high * stored.scale and as_stored <= stored.high * stored.scale:
        found = (
            f"is not bit-rotated: its values are {as_stored / stored.scale:.3g} m as they are, "
            f"{deep / stored.scale:.3g} m once rotated back"
        )
        remedy = "use SUN RGB-D's own files, whose bits are rotated left by 3; a conversion would be decoded twice"
        return Problem("depth-not-rotated", path, found, remedy)
    likely = [name for scale, name in _SCALES.items() if stored.low <= deep / scale <= stored.high]
    found = (
        f"and others are {deep / stored.scale:.3g} m deep when read as {_SCALES[stored.scale]}, "
        f"where {stored.low:g} to {stored.high:g} m is expected"
    )
    guess = f"; these look like {' or '.join(likely)}" if likely else ""
    remedy = f"store depth in {_SCALES[stored.scale]} ({stored.scale} a metre, 16 bits){guess}"
    return Problem("depth-scale", path, found, remedy)


def _check_split(listed_in: Path, pairs: list[tuple[Path, Path]], stored: _Stored) -> list[Problem]:
    problems = listed_files("images", listed_in, [image for image, _ in pairs])
    problems += listed_files("depth maps", listed_in, [depth for _, depth in pairs])
    there = [(image, depth) for image, depth in pairs if is_there(image) and is_there(depth)]
    return problems + _check_maps(there, stored)


def _for(official: bool, stored: _Stored) -> _Stored:
    """Without the release's sizes, where the data are not it."""
    return stored if official else replace(stored, size=None)


def _check_names(names: dict[Path, list[str]]) -> list[Problem]:
    """Repetitions within, and images in both of, a training and a validation split."""
    problems = [problem for listed_in, images in names.items() for problem in repeated(listed_in, images)]
    if len(names) == 2:
        (train, train_names), (val, val_names) = names.items()
        problems += overlapping(train, train_names, val, val_names)
    return problems


def check_nyuv2(root: Path, official: bool = True) -> list[Problem]:
    """NYU Depth v2 as BTS prepares it; see ``attn_plugins.data.layouts.nyuv2``."""
    download = "BTS's sync.zip unpacks to sync/, its official_splits.zip to official_splits/, in the data root"
    problems = find_folders(root, [folder for _, folder in nyuv2.SPLITS.values()], download)
    if problems:
        return problems
    form = "/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579"
    names: dict[Path, list[str]] = {}
    for split, (name, folder) in nyuv2.SPLITS.items():
        lines, found = split_lines(root / name, (2, 3), form)
        names[root / name] = [f"{folder}/{line[0].lstrip('/')}" for line in lines]
        pairs = [(root / folder / line[0].lstrip("/"), root / folder / line[1].lstrip("/")) for line in lines]
        problems += found + _check_split(root / name, pairs, _for(official, _STORED_NYUV2))
        problems += _count("nyuv2", split, root / name, len(lines), official)
    return problems + _check_names(names)


def _count(dataset: str, split: str, listed_in: Path, found: int, official: bool) -> list[Problem]:
    """Whether a split that names anything names as many images as the release's."""
    return counted("images with depth", listed_in, found, OFFICIAL[dataset][split].images) if official and found else []


def check_kitti(root: Path, official: bool = True) -> list[Problem]:
    """KITTI, Eigen's split; see ``attn_plugins.data.layouts.kitti``."""
    download = "data_depth_annotated.zip unpacks there; raw drives (2011_09_26/...) go directly below the data root"
    problems = find_folders(root, (kitti.IMPROVED,), download)
    if problems:
        return problems
    truth = root / kitti.IMPROVED
    unmerged = sorted({drive.parent for drive in truth.glob("*/*_sync")})
    if unmerged:
        remedy = f"move the drives up: mv {' '.join(f'{folder}/*' for folder in unmerged)} {truth}/"
        found = f"still has the archive's {' and '.join(f'{folder.name}/' for folder in unmerged)}"
        return [Problem("kitti-not-merged", truth, found, remedy)]
    names: dict[Path, list[str]] = {}
    form = "2011_09_26/DRIVE/image_02/data/0000000069.png DRIVE/proj_depth/groundtruth/image_02/0000000069.png 721.5377"
    for split, name in kitti.SPLITS.items():
        lines, malformed = split_lines(root / name, (2, 3), form)
        problems += malformed
        names[root / name] = [line[0] for line in lines]
        unmeasured = [root / line[0] for line in lines if line[1] == "None"]
        if unmeasured and split == "train":
            what = f"{len(unmeasured)} training lines have no depth (None)"
            problems.append(Problem("malformed-split", root / name, what, "take these lines out of the split file"))
        problems += listed_files("images without ground truth", root / name, unmeasured)
        measured = [line for line in lines if line[1] != "None"]
        pairs = [(root / line[0].lstrip("/"), truth / line[1].lstrip("/")) for line in measured]
        problems += _check_split(root / name, pairs, _for(official, _STORED_KITTI))
        problems += _count("kitti", split, root / name, len(measured), official)
        if (root / kitti.RAW).is_dir():
            raw = [root / kitti.RAW / line[1].replace("groundtruth", "velodyne_raw") for line in measured]
            problems += listed_files("raw depth maps", root / name, raw)
            there = [(root / line[0], path) for line, path in zip(measured, raw, strict=True) if is_there(path)]
            problems += _check_maps([pair for pair in there if is_there(pair[0])], _for(official, _STORED_KITTI))
    return problems + _check_names(names)


def check_sunrgbd(root: Path, official: bool = True) -> list[Problem]:
    """SUN RGB-D as released, depth bit-rotated; see ``attn_plugins.data.layouts.sunrgbd``."""
    download = "SUNRGBD.zip unpacks to SUNRGBD/ in the data root"
    problems = find_folders(root, ("SUNRGBD",), download)
    if problems:
        return problems
    form = "SUNRGBD/kv1/NYUdata/NYU0001/image/NYU0001.jpg SUNRGBD/kv1/NYUdata/NYU0001/depth_bfx/NYU0001.png"
    names: dict[Path, list[str]] = {}
    for split, name in sunrgbd.SPLITS.items():
        if split == "train" and not is_there(root / name):
            continue  # the transferred probe is tested only
        lines, found = split_lines(root / name, (2,), form)
        names[root / name] = [image for image, _ in lines]
        pairs = [(root / image, root / depth) for image, depth in lines]
        problems += found + _check_split(root / name, pairs, _STORED_SUNRGBD)
        problems += _count("sunrgbd_train" if split == "train" else "sunrgbd", split, root / name, len(lines), official)
    return problems + _check_names(names)
