"""ImageNet-1K as Kaggle's ImageNet Object Localization Challenge unpacks, sorted into class folders.

ILSVRC/Data/CLS-LOC/{train/WNID/*.JPEG,val/*.JPEG,test/*.JPEG}
ILSVRC/Annotations/CLS-LOC/{train/WNID/*.xml,val/*.xml}
LOC_synset_mapping.txt           lines "WNID names"
LOC_val_solution.csv             ImageId,PredictionString: the class of an image, before each of its boxes
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from attn_plugins.data.convert.labels import require
from attn_plugins.data.convert.plan import Converter, Link, Options, Plan
from attn_plugins.files import read_lines

__all__ = ["KAGGLE"]

_DATA, _BOXES = "ILSVRC/Data/CLS-LOC", "ILSVRC/Annotations/CLS-LOC"
_MAPPING, _SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"


def _recognises(source: Path) -> bool:
    return (source / _DATA).is_dir() and ((source / _SOLUTION).is_file() or (source / _MAPPING).is_file())


def _classes(mapping: Path) -> set[str]:
    if not mapping.is_file():
        raise ValueError(
            f"{mapping} does not exist: it is beside the images on the competition's page, lines 'WNID names'"
        )
    return {line.split()[0] for line in read_lines(mapping) if line.strip()}


def _solution(path: Path, classes: set[str]) -> dict[str, str]:
    """{image of the validation set: its class}."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: it is beside the images on the competition's page")
    rows = list(csv.reader(read_lines(path)))
    if not rows or rows[0] != ["ImageId", "PredictionString"]:
        raise ValueError(f"{path} begins with {rows[:1]}, not with ImageId,PredictionString: download it again")
    solution = {}
    for number, row in enumerate(rows[1:], 2):
        named = {word for word in row[1].split() if word in classes} if len(row) == 2 else set()
        if len(named) != 1 or "/" in row[0]:
            raise ValueError(
                f"{path}:{number}: {','.join(row)!r} names {len(named)} of the classes of {_MAPPING}, not 1"
            )
        solution[row[0]] = named.pop()
    return solution


def _files(folder: Path, suffix: str) -> list[str]:
    """Sorted names, without a stat of each of a million files."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.endswith(suffix) and not e.name.startswith("._"))


def _below(source: Path, target: str, classes: list[str], suffix: str) -> Iterator[Link]:
    for wnid in classes:
        for name in _files(source / wnid, suffix) if (source / wnid).is_dir() else ():
            yield Link(f"{target}/{wnid}/{name}", f"{source}/{wnid}/{name}")


def _items(source: Path, classes: list[str], solution: dict[str, str]) -> Iterator[Link]:
    yield from _below(source / _DATA / "train", "train", classes, ".JPEG")
    for image, wnid in solution.items():
        yield Link(f"val/{wnid}/{image}.JPEG", f"{source}/{_DATA}/val/{image}.JPEG")
    yield from _below(source / _BOXES / "train", "Annotations/CLS-LOC/train", classes, ".xml")
    if (source / _BOXES / "val").is_dir():
        for name in _files(source / _BOXES / "val", ".xml"):
            yield Link(f"Annotations/CLS-LOC/val/{name}", f"{source}/{_BOXES}/val/{name}")


def _plan(source: Path, options: Options) -> Plan:
    classes = _classes(source / _MAPPING)
    solution = _solution(source / _SOLUTION, classes)
    train = source / _DATA / "train"
    there = {entry.name for entry in os.scandir(train) if entry.is_dir()} if train.is_dir() else set()
    if there != classes:
        odd = sorted(there ^ classes)
        raise ValueError(
            f"{train} has {len(there)} class folders, {_MAPPING} names {len(classes)}; not in both: "
            f"{', '.join(odd[:5])}: unpack the archive again"
        )
    require([source / _DATA / "val" / f"{image}.JPEG" for image in solution], f"images of {_SOLUTION}")
    ordered = sorted(classes)
    total = sum(1 for _ in _items(source, ordered, solution))
    return Plan(_items(source, ordered, solution), total, {}, (source / _MAPPING, source / _SOLUTION))


KAGGLE = Converter("imagenet-kaggle", f"{_DATA}/, {_SOLUTION} and {_MAPPING}", _recognises, _plan)
