"""Checks of PASCAL VOC 2012, ADE20K and Cityscapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
from attn_plugins.data.layouts.ade20k import FOLDERS as ADE_FOLDERS
from attn_plugins.data.layouts.cityscapes import LABEL_IDS
from attn_plugins.results.official import OFFICIAL, TRAINAUG

__all__ = ["check_ade20k", "check_cityscapes", "check_voc2012"]

_VOID = 255


@dataclass(frozen=True)
class _Ids:
    """What a mask may hold: ids 0 to ``largest`` and ``void``; and what to do about a mask of another kind.

    ``size`` tells whether a mask's (H, W) is one of the release's, which ``sizes`` names.
    """

    largest: int
    void: tuple[int, ...]
    if_colours: str
    if_outside: str
    size: Callable[[int, int], bool] | None = None
    sizes: str = ""


def _check_masks(pairs: list[tuple[Path, Path]], expected: _Ids) -> list[Problem]:
    """Whether sampled masks hold class ids; one problem of each kind is enough to say what happened."""
    problems: dict[str, Problem] = {}
    for image, mask in sample(pairs):
        broken, target = read_pair(image, mask)
        for problem in broken:
            problems.setdefault(problem.kind, problem)
        if target is None:
            continue
        mode, pixels = target
        for problem in resized(mask, pixels.shape[:2], expected.size, expected.sizes):
            problems.setdefault(problem.kind, problem)
        if pixels.ndim != 2 or pixels.dtype != np.uint8:
            found = f"is a {mode} picture, not 8-bit class ids"
            problems.setdefault("colour-mask", Problem("colour-mask", mask, found, expected.if_colours))
            continue
        ids = np.unique(pixels)
        outside = [int(i) for i in ids if i > expected.largest and i not in expected.void]
        if outside:
            found = f"holds ids outside 0..{expected.largest}: {outside[:8]}"
            problems.setdefault("label-range", Problem("label-range", mask, found, expected.if_outside))
    return list(problems.values())


def _check_split(listed_in: Path, pairs: list[tuple[Path, Path]], expected: _Ids) -> list[Problem]:
    problems = listed_files("images", listed_in, [image for image, _ in pairs])
    problems += listed_files("masks", listed_in, [mask for _, mask in pairs])
    there = [(image, mask) for image, mask in pairs if is_there(image) and is_there(mask)]
    return problems + _check_masks(there, expected)


def check_voc2012(root: Path, official: bool = True) -> list[Problem]:
    """PASCAL VOC 2012: ``root`` is VOCdevkit/VOC2012; ``trainaug.txt`` where it is there."""
    download = "VOCtrainval_11-May-2012.tar unpacks to VOCdevkit/VOC2012, which is the data root"
    problems = find_folders(root, ("SegmentationClass", "JPEGImages", "ImageSets/Segmentation"), download)
    if problems:
        return problems
    expected = _Ids(
        20,
        (_VOID,),
        "use the archive's own P-mode PNGs, not a conversion to RGB: the index of a pixel is its class",
        "ids are 0..20 and 255: the palette was lost (a conversion to grey); unpack SegmentationClass again",
        (lambda height, width: max(height, width) <= 500) if official else None,
        "no side over 500",
    )
    counts = {split: OFFICIAL["voc2012"][split].images for split in ("train", "val")} | {"trainaug": TRAINAUG}
    names: dict[str, list[str]] = {}
    for split, count in counts.items():
        listed_in = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if split == "trainaug" and not listed_in.exists():
            continue
        lines, found = split_lines(listed_in, (1,), "2007_000032")
        names[split] = [name for (name,) in lines]
        augmented = split == "trainaug" and (root / "SegmentationClassAug").is_dir()
        masks = root / ("SegmentationClassAug" if augmented else "SegmentationClass")
        pairs = [(root / "JPEGImages" / f"{name}.jpg", masks / f"{name}.png") for name in names[split]]
        problems += found + _check_split(listed_in, pairs, expected) + repeated(listed_in, names[split])
        if lines:
            problems += counted("images", listed_in, len(lines), count if official else None)
    for split in ("train", "trainaug"):
        folder = root / "ImageSets" / "Segmentation"
        problems += overlapping(folder / f"{split}.txt", names.get(split, []), folder / "val.txt", names["val"])
    return problems


def check_ade20k(root: Path, official: bool = True) -> list[Problem]:
    """ADE20K: ``root`` is ADEChallengeData2016."""
    download = "ADEChallengeData2016.zip (the scene parsing benchmark, not the full ADE20K) unpacks to the data root"
    problems = find_folders(root, ("annotations", "images"), download)
    if problems:
        return problems
    expected = _Ids(
        150,
        (),
        "these are the full data set's _seg.png: use ADEChallengeData2016.zip, whose masks hold ids 0..150",
        "ids are 0 (void) to 150, before reduce_zero_label; 255 means that zero was reduced already: unpack again",
    )
    for split, folder in ADE_FOLDERS.items():
        images = [path for path in sorted((root / "images" / folder).glob("*.jpg")) if not path.name.startswith("._")]
        if not images:
            found = "holds no .jpg images" if (root / "images" / folder).is_dir() else "does not exist"
            problems.append(Problem("missing-folder", root / "images" / folder, found, download))
            continue
        pairs = [(image, root / "annotations" / folder / f"{image.stem}.png") for image in images]
        problems += _check_split(root / "images" / folder, pairs, expected)
        count = OFFICIAL["ade20k"][split].images if official else None
        problems += counted("images", root / "images" / folder, len(images), count)
    return problems


def check_cityscapes(root: Path, official: bool = True) -> list[Problem]:
    """Cityscapes: ``root`` holds leftImg8bit and gtFine."""
    download = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip both unpack into the data root"
    problems = find_folders(root, ("leftImg8bit", "gtFine"), download)
    if problems:
        return problems
    convert = (
        f"attn-plugins data convert cityscapes {root} OUT writes the train ids (as does cityscapesScripts' "
        "csCreateTrainIdLabelImgs)"
    )
    expected = _Ids(
        18,
        (_VOID,),
        f"that is gtFine_color: {convert}",
        f"train ids are 0..18 and 255; ids up to {max(LABEL_IDS)} are label ids: {convert}",
        (lambda height, width: (height, width) == (1024, 2048)) if official else None,
        "1024x2048",
    )
    for split in ("train", "val"):
        folder = root / "leftImg8bit" / split
        images = [path for path in sorted(folder.glob("*/*_leftImg8bit.png")) if not path.name.startswith("._")]
        if not images:
            found = "holds no CITY/*_leftImg8bit.png" if folder.is_dir() else "does not exist"
            problems.append(Problem("missing-folder", folder, found, download))
            continue
        count = OFFICIAL["cityscapes"][split].images if official else None
        problems += counted("images", folder, len(images), count)
        stems = [(image.parent.name, image.name.removesuffix("_leftImg8bit.png")) for image in images]
        truth = root / "gtFine" / split
        pairs = [
            (image, truth / city / f"{stem}_gtFine_labelTrainIds.png")
            for image, (city, stem) in zip(images, stems, strict=True)
        ]
        unconverted = [
            mask for _, mask in pairs
            if not is_there(mask) and is_there(mask.with_name(mask.name.replace("labelTrainIds", "labelIds")))
        ]  # fmt: skip
        if unconverted:
            found = f"{len(unconverted)} of {len(pairs)} masks exist as labelIds only"
            problems.append(Problem("label-ids-only", unconverted[0], found, convert))
            gone = set(unconverted)
            pairs = [pair for pair in pairs if pair[1] not in gone]
        problems += _check_split(folder, pairs, expected)
    return problems
