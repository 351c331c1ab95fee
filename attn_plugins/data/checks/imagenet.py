"""Check of ImageNet-1K."""

from __future__ import annotations

import os
from pathlib import Path

from attn_plugins.data.checks.files import (
    Problem,
    counted,
    find_folders,
    is_there,
    listed_files,
    read_picture,
    repeated,
    sample,
    split_lines,
)
from attn_plugins.data.images import SUFFIXES
from attn_plugins.results.official import OFFICIAL

__all__ = ["check_imagenet"]

_LABELS = "meta/val.txt"


def _children(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the files in ``folder``, without a stat of each."""
    with os.scandir(folder) as entries:
        kinds = [(entry.name, _is_folder(entry)) for entry in entries]
    return sorted(n for n, is_dir in kinds if is_dir), sorted(n for n, is_dir in kinds if not is_dir)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _images(files: list[str]) -> list[str]:
    return [file for file in files if file.lower().endswith(tuple(SUFFIXES)) and not file.startswith("._")]


def _check_classes(folder: Path, classes: list[str], expected: int | None) -> list[Problem]:
    """Whether every class folder holds an image, all together as many as expected, and sampled ones can be decoded."""
    first: list[Path] = []
    empty: list[str] = []
    total = 0
    for name in classes:
        images = _images(_children(folder / name)[1])
        total += len(images)
        if images:
            first.append(folder / name / images[0])
        else:
            empty.append(name)
    problems = counted("images", folder, total, expected)
    if empty:
        found = f"{len(empty)} of {len(classes)} class folders hold no image"
        problems.append(Problem("empty-class", folder / empty[0], found, "unpack these classes again"))
    return problems + _unreadable(first)


def _unreadable(paths: list[Path]) -> list[Problem]:
    read = [read_picture(path) for path in sample(paths)]
    return [problem for problem in read if isinstance(problem, Problem)]


def _check_flat_val(root: Path, images: list[str], classes: list[str], expected: int | None) -> list[Problem]:
    labels = root / _LABELS
    if not is_there(labels):
        found = f"holds {len(images)} images that are not sorted into class folders, and there is no {labels}"
        remedy = f"sort them into folders (valprep.sh), or write {_LABELS}: lines 'ILSVRC2012_val_00000001.JPEG 65'"
        return [Problem("val-unlabelled", root / "val", found, remedy)]
    lines, problems = split_lines(labels, (2,), "ILSVRC2012_val_00000001.JPEG 65")
    outside = [line for line in lines if not (line[1].isdecimal() and int(line[1]) < len(classes))]
    if outside:
        found = f"{len(outside)} labels are not in 0..{len(classes) - 1}, first: {' '.join(outside[0])}"
        remedy = "count the sorted folders of train/ from 0; the devkit's own ids count otherwise and from 1"
        problems.append(Problem("label-range", labels, found, remedy))
    unlabelled = sorted(set(images) - {line[0] for line in lines})
    if unlabelled:
        found = f"{len(unlabelled)} of {len(images)} images have no line in {_LABELS}"
        problems.append(Problem("val-unlabelled", root / "val" / unlabelled[0], found, "complete the labels file"))
    listed = [root / "val" / line[0] for line in lines]
    problems += listed_files("images", labels, listed) + repeated(labels, [line[0] for line in lines])
    problems += counted("images", root / "val", len(images), expected)
    return problems + _unreadable([path for path in listed if is_there(path)])


def check_imagenet(root: Path, official: bool = True) -> list[Problem]:
    """ImageNet-1K: ``root`` holds train/CLASS/*.JPEG and val/, by class or flat with meta/val.txt."""
    download = "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar unpack to train/ and val/ in the data root"
    problems = find_folders(root, ("train", "val"), download)
    if problems:
        return problems
    classes, files = _children(root / "train")
    archives = [file for file in files if file.endswith(".tar")]
    if archives:
        found = f"holds {len(archives)} class archives that are not unpacked"
        remedy = "unpack each: for f in *.tar; do mkdir ${f%.tar}; tar -xf $f -C ${f%.tar}; done"
        problems.append(Problem("not-unpacked", root / "train" / archives[0], found, remedy))
    if not classes:
        remedy = "one folder per class is expected: train/n01440764/*.JPEG"
        return [*problems, Problem("missing-folder", root / "train", "holds no class folders", remedy)]
    counts = {split: OFFICIAL["imagenet"][split].images if official else None for split in ("train", "val")}
    problems += counted("class folders", root / "train", len(classes), 1000 if official else None)
    problems += _check_classes(root / "train", classes, counts["train"])
    val_classes, val_files = _children(root / "val")
    images = _images(val_files)
    if images and val_classes:
        found = f"holds {len(images)} images beside {len(val_classes)} class folders"
        remedy = "sort all of them into class folders, or none"
        return [*problems, Problem("val-mixed", root / "val" / images[0], found, remedy)]
    if images:
        return problems + _check_flat_val(root, images, classes, counts["val"])
    if not val_classes:
        return [*problems, Problem("missing-folder", root / "val", "is empty", download)]
    if set(val_classes) != set(classes):
        odd = sorted(set(val_classes) ^ set(classes))
        found = f"has {len(val_classes)} classes, train/ has {len(classes)}; not in both: {', '.join(odd[:5])}"
        remedy = "both need the same class folders, or labels shift by the ones that are missing"
        problems.append(Problem("class-mismatch", root / "val", found, remedy))
    return problems + _check_classes(root / "val", val_classes, counts["val"])
