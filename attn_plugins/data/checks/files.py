"""What every check is made of: a problem with its remedy, folders, listed files, sampled pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

__all__ = ["SAMPLED", "Problem", "find_folders", "listed_files", "read_pair", "read_picture", "sample", "split_lines"]

T = TypeVar("T")

# Pictures decoded per split: enough to meet every habit of a conversion script, little enough to take a second.
SAMPLED = 24
_SUFFIXES = (".jpg", ".jpeg", ".JPEG", ".png")


@dataclass(frozen=True)
class Problem:
    """Something in a data root that would stop or falsify a probe.

    Attributes:
        kind: a short name of the problem, such as "missing-files".
        path: what it is about.
        found: what is there, or is not.
        remedy: what to do.
    """

    kind: str
    path: Path
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.found}\n    remedy: {self.remedy}"


def find_folders(root: Path, needed: Sequence[str], download: str) -> list[Problem]:
    """Whether `root` holds the folders `needed`; if not, where near it they are.

    Args:
        root: the data root.
        needed: folders or files below it, the first of which tells the data set.
        download: where the data set comes from, for the remedy.
    """
    if not root.exists():
        return [Problem("missing-root", root, "does not exist", f"give an existing folder; {download}")]
    if not root.is_dir():
        return [Problem("missing-root", root, "is not a folder", f"give the folder that holds {needed[0]}")]
    missing = [name for name in needed if not (root / name).exists()]
    if not missing:
        return []
    if len(missing) < len(needed):
        return [Problem("missing-folder", root / name, "does not exist", download) for name in missing]
    for place in _near(root):
        if all((place / name).exists() for name in needed):
            found = f"holds no {missing[0]}, but {place} does"
            return [Problem("wrong-folder", root, found, f"give {place} as the data root")]
    found = f"holds none of {', '.join(needed)}"
    return [Problem("wrong-folder", root, found, f"give the folder that holds {needed[0]}; {download}")]


def _near(root: Path) -> Iterable[Path]:
    """Folders a user may have meant: up to two levels below and above `root`."""
    below = [child for child in sorted(root.iterdir()) if child.is_dir()][:200]
    yield from below
    for child in below[:20]:
        yield from [grandchild for grandchild in sorted(child.iterdir()) if grandchild.is_dir()][:50]
    yield from root.absolute().parents[:2]


def split_lines(path: Path, columns: tuple[int, ...], form: str) -> tuple[list[list[str]], list[Problem]]:
    """The lines of a split file, each as its columns.

    Args:
        path: the split file.
        columns: how many columns a line may have.
        form: what a line looks like, for the message.
    """
    if not path.is_file():
        return [], [Problem("missing-split", path, "does not exist", f"put the split file there: lines {form}")]
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if not lines:
        return [], [Problem("empty-split", path, "is empty", f"put the data set's own split file there: lines {form}")]
    wrong = [i for i, line in enumerate(lines, 1) if len(line) not in columns]
    if wrong:
        example = " ".join(lines[wrong[0] - 1])
        found = f"{len(wrong)} of {len(lines)} lines are malformed, first line {wrong[0]}: {example!r}"
        problem = Problem("malformed-split", path, found, f"write every line as {form}")
        return [line for line in lines if len(line) in columns], [problem]
    return lines, []


def listed_files(what: str, listed_in: Path, paths: Sequence[Path]) -> list[Problem]:
    """Whether every listed file exists and is not empty: one problem for all that are missing, one for all empty."""
    missing, empty = [], []
    for path in paths:
        if not path.is_file():
            missing.append(path)
        elif path.stat().st_size == 0:
            empty.append(path)
    problems = []
    if missing:
        found = f"{len(missing)} of the {len(paths)} {what} listed in {listed_in.name} do not exist"
        others = [missing[0].with_suffix(suffix) for suffix in _SUFFIXES]
        twin = next((other for other in others if other.is_file()), None)
        remedy = (
            f"{twin.name} is there instead: convert back or unpack the original {missing[0].suffix} files"
            if twin
            else f"unpack the missing files, or use the split file that belongs to this copy ({listed_in})"
        )
        problems.append(Problem("missing-files", missing[0], found, remedy))
    if empty:
        found = f"{len(empty)} of the {len(paths)} {what} listed in {listed_in.name} are empty files"
        problems.append(Problem("unreadable", empty[0], found, "copy or unpack them again"))
    return problems


def sample(items: Sequence[T]) -> list[T]:
    """At most `SAMPLED` of the items, evenly spread, first and last among them."""
    if len(items) <= SAMPLED:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, SAMPLED).astype(int)]


def read_picture(path: Path) -> tuple[str, NDArray[Any]] | Problem:
    """(mode, pixels) of a picture read to its last byte, or the problem that stops it."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some training libraries switch it on for the whole process
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.mode, np.asarray(picture)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
        return Problem("unreadable", path, f"cannot be decoded: {error}", "copy or unpack the file again")
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def read_pair(image: Path, target: Path) -> tuple[list[Problem], tuple[str, NDArray[Any]] | None]:
    """An image and its mask or depth map: what is wrong with their files, and (mode, pixels) of the second."""
    first, second = read_picture(image), read_picture(target)
    problems = [p for p in (first, second) if isinstance(p, Problem)]
    if isinstance(first, Problem) or isinstance(second, Problem):
        return problems, None if isinstance(second, Problem) else second
    if first[1].shape[:2] != second[1].shape[:2]:
        found = f"is {second[1].shape[1]}x{second[1].shape[0]}, its image {first[1].shape[1]}x{first[1].shape[0]}"
        remedy = "use files of the same release: images and targets are pixel by pixel"
        return [Problem("size-mismatch", target, found, remedy)], None
    return [], second
