"""Checks of NYUv2, KITTI and SUN RGB-D."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attn_plugins.data.checks.files import (
    Problem,
    find_folders,
    listed_files,
    read_pair,
    sample,
    split_lines,
)
from attn_plugins.data.layouts import kitti, nyuv2, sunrgbd
from attn_plugins.data.layouts.depth import KITTI_SCALE, MILLIMETRES, rotate_right

__all__ = ["check_kitti", "check_nyuv2", "check_sunrgbd"]

# What conversions are met in the wild, stored units a metre.
_SCALES = {256: "1/256 m", 1000: "millimetres", 5000: "1/5000 m", 8000: "bit-rotated millimetres", 100: "centimetres"}


@dataclass(frozen=True)
class _Stored:
    """How a data set's depth is stored, and how deep (metres) its 99.5th percentile can be."""

    scale: int
    low: float
    high: float
    rotated: bool = False


_STORED_NYUV2 = _Stored(MILLIMETRES, 2.7, 10.5)
_STORED_KITTI = _Stored(KITTI_SCALE, 15, 110)
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
    there = [(image, depth) for image, depth in pairs if image.is_file() and depth.is_file()]
    return problems + _check_maps(there, stored)


def check_nyuv2(root: Path) -> list[Problem]:
    """NYU Depth v2 as BTS prepares it; see `attn_plugins.data.layouts.nyuv2`."""
    download = "BTS's sync.zip unpacks to sync/, its official_splits.zip to official_splits/, in the data root"
    problems = find_folders(root, [folder for _, folder in nyuv2.SPLITS.values()], download)
    if problems:
        return problems
    form = "/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579"
    for name, folder in nyuv2.SPLITS.values():
        lines, found = split_lines(root / name, (2, 3), form)
        pairs = [(root / folder / line[0].lstrip("/"), root / folder / line[1].lstrip("/")) for line in lines]
        problems += found + _check_split(root / name, pairs, _STORED_NYUV2)
    return problems


def check_kitti(root: Path) -> list[Problem]:
    """KITTI, Eigen's split; see `attn_plugins.data.layouts.kitti`."""
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
    form = "2011_09_26/DRIVE/image_02/data/0000000069.png DRIVE/proj_depth/groundtruth/image_02/0000000069.png 721.5377"
    for split, name in kitti.SPLITS.items():
        lines, malformed = split_lines(root / name, (2, 3), form)
        problems += malformed
        unmeasured = [root / line[0] for line in lines if line[1] == "None"]
        if unmeasured and split == "train":
            what = f"{len(unmeasured)} training lines have no depth (None)"
            problems.append(Problem("malformed-split", root / name, what, "take these lines out of the split file"))
        problems += listed_files("images without ground truth", root / name, unmeasured)
        measured = [line for line in lines if line[1] != "None"]
        pairs = [(root / line[0], truth / line[1]) for line in measured]
        problems += _check_split(root / name, pairs, _STORED_KITTI)
        if (root / kitti.RAW).is_dir():
            raw = [root / kitti.RAW / line[1].replace("groundtruth", "velodyne_raw") for line in measured]
            problems += listed_files("raw depth maps", root / name, raw)
            there = [(root / line[0], path) for line, path in zip(measured, raw, strict=True) if path.is_file()]
            problems += _check_maps([pair for pair in there if pair[0].is_file()], _STORED_KITTI)
    return problems


def check_sunrgbd(root: Path) -> list[Problem]:
    """SUN RGB-D as released, depth bit-rotated; see `attn_plugins.data.layouts.sunrgbd`."""
    download = "SUNRGBD.zip unpacks to SUNRGBD/ in the data root"
    problems = find_folders(root, ("SUNRGBD",), download)
    if problems:
        return problems
    form = "SUNRGBD/kv1/NYUdata/NYU0001/image/NYU0001.jpg SUNRGBD/kv1/NYUdata/NYU0001/depth_bfx/NYU0001.png"
    for split, name in sunrgbd.SPLITS.items():
        if split == "train" and not (root / name).is_file():
            continue  # the transferred probe is tested only
        lines, found = split_lines(root / name, (2,), form)
        pairs = [(root / image, root / depth) for image, depth in lines]
        problems += found + _check_split(root / name, pairs, _STORED_SUNRGBD)
    return problems
