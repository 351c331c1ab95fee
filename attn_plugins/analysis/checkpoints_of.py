"""The checkpoints in the folder of a training run, as trainers number them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ..checkpoints.plain import WEIGHTS

__all__ = ["Numbered", "find_checkpoints"]

_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".pth.tar", ".tar")
_NUMBERS = (
    ("step", re.compile(r"(?<![a-z])(?:step|iter(?:ation)?)[=_-]?(\d+)")),  # Lightning's epoch=2-step=500 too
    ("epoch", re.compile(r"(?<![a-z])ep(?:och)?[=_-]?(\d+)")),
    ("step", re.compile(r"^training_(\d+)$")),  # DINOv2's eval/training_12499/teacher_checkpoint.pth
    ("step", re.compile(r"^(\d+)$")),  # DINOv3's eval/12499 and ckpt/12499
    ("epoch", re.compile(r"^checkpoint[_-]?(\d+)$")),  # DINOv1's checkpoint0020.pth, timm's checkpoint-20.pth.tar
    ("step", re.compile(r"[_-](\d+)$")),
)
_FOLDER = re.compile(r"^checkpoint-(\d+)$")
"""A folder of transformers is of a step; timm's file of the same name is of an epoch."""


@dataclass(frozen=True)
class Numbered:
    """A checkpoint with the step or epoch that its name tells.

    Attributes:
        path: a file, or a folder that is one checkpoint.
        unit: ``step`` or ``epoch``.
        number: how many.
        size: of all its files, in bytes.
        changed: when the last of them was, in nanoseconds since 1970.
    """

    path: Path
    unit: str
    number: int
    size: int
    changed: int

    @property
    def label(self) -> str:
        return f"{self.unit} {self.number}"

    @property
    def folder(self) -> str:
        """A name for what is measured of these very bytes, in the order of numbers."""
        digest = hashlib.sha256(f"{self.path.name} {self.size} {self.changed}".encode()).hexdigest()
        return f"{self.unit}-{self.number:09d}-{digest[:8]}"


def find_checkpoints(run: Path, match: str = "*", leave_out: Path | None = None) -> list[Numbered]:
    """Those below ``run``, by their numbers: files that say a step or epoch, and folders that are one checkpoint.

    Files that are overwritten again and again (``last.ckpt``, ``checkpoint.pth``) have no number and are left out,
    as are the parts of sharded ones (``.rank_0``). Of several with one number a teacher's is taken, then one in a
    folder ``eval``.

    Args:
        run: the folder.
        match: a pattern of paths relative to it.
        leave_out: a folder in it that is not looked into.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is no folder: name that which a trainer writes its checkpoints to")
    found: dict[tuple[str, int], Numbered] = {}
    for path in _candidates(run, leave_out):
        one = _numbered(path, run)
        if one is None or not fnmatch(path.relative_to(run).as_posix(), match):
            continue
        key = (one.unit, one.number)
        if key not in found or _rank(path) < _rank(found[key].path):
            found[key] = one
    return sorted(found.values(), key=lambda one: (one.unit, one.number))


def _candidates(run: Path, leave_out: Path | None) -> Iterator[Path]:
    for folder, folders, files in os.walk(run):
        here = Path(folder)
        whole = [name for name in sorted(folders) if _is_checkpoint(here / name)]
        yield from (here / name for name in whole)
        folders[:] = [n for n in sorted(folders) if n not in whole and n[0] != "." and here / n != leave_out]
        yield from (here / name for name in sorted(files) if name.endswith(_SUFFIXES) and name[0] != ".")


def _is_checkpoint(folder: Path) -> bool:
    return bool(_number(folder)) and any((folder / name).is_file() for name in (".metadata", *WEIGHTS))


def _numbered(path: Path, run: Path) -> Numbered | None:
    if ".rank_" in path.name:
        return None
    told = _number(path) or (_number(path.parent) if path.parent != run else None)
    if told is None:
        return None
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    try:
        stats = [file.stat() for file in files]
    except FileNotFoundError:  # the trainer has removed it: it keeps the last few
        return None
    return Numbered(path, *told, sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0))


def _number(path: Path) -> tuple[str, int] | None:
    name = path.name
    if path.is_dir():
        folder = _FOLDER.search(name)
        if folder:
            return "step", int(folder[1])
    else:
        for suffix in sorted(_SUFFIXES, key=len, reverse=True):
            name = name.removesuffix(suffix)
    for unit, pattern in _NUMBERS:
        number = pattern.search(name)
        if number:
            return unit, int(number[1])
    return None


def _rank(path: Path) -> tuple[bool, bool, int, str]:
    return "teacher" not in path.name, "eval" not in path.parts, len(path.parts), str(path)
