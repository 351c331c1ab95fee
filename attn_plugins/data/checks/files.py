"""What every check is made of: a problem with its remedy, folders, listed files, sampled pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from attn_plugins.data.images import TurnedImageError, opened, read_image

__all__ = [
    "SAMPLED",
    "Problem",
    "counted",
    "find_folders",
    "is_there",
    "listed_files",
    "overlapping",
    "read_pair",
    "read_picture",
    "repeated",
    "resized",
    "sample",
    "split_lines",
]

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
    """Whether ``root`` holds the folders ``needed``; if not, where near it they are.

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
    """Folders a user may have meant: up to two levels below and above ``root``."""
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
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        return [], [Problem("malformed-split", path, f"is no readable text: {error}", f"write lines {form} in UTF-8")]
    if not lines:
        return [], [Problem("empty-split", path, "is empty", f"put the data set's own split file there: lines {form}")]
    wrong = [i for i, line in enumerate(lines, 1) if len(line) not in columns]
    if wrong:
        example = " ".join(lines[wrong[0] - 1])
        found = f"{len(wrong)} of {len(lines)} lines are malformed, first line {wrong[0]}: {example!r}"
        problem = Problem("malformed-split", path, found, f"write every line as {form}")
        return [line for line in lines if len(line) in columns], [problem]
    return lines, []


def is_there(path: Path) -> bool:
    """Whether a file can be opened as one; False for a name that no file can have, too."""
    try:
        return path.is_file()
    except OSError:
        return False


def listed_files(what: str, listed_in: Path, paths: Sequence[Path]) -> list[Problem]:
    """Whether every listed file exists and is not empty: one problem for all that are missing, one for all empty."""
    missing: list[Path] = []
    empty: list[Path] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            if not path.is_file():
                missing.append(path)
            elif path.stat().st_size == 0:
                empty.append(path)
        except OSError as error:  # a name that is too long, a folder that may not be entered
            if not problems:
                remedy = f"correct its line in {listed_in}, or the access to it"
                problems.append(Problem("unreadable", path, f"cannot be looked at: {error}", remedy))
    if missing:
        found = f"{len(missing)} of the {len(paths)} {what} listed in {listed_in.name} do not exist"
        others = [missing[0].with_suffix(suffix) for suffix in _SUFFIXES]
        twin = next((other for other in others if is_there(other)), None)
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


def repeated(listed_in: Path, names: Sequence[str]) -> list[Problem]:
    """Whether a split names something twice."""
    again = [name for name, count in Counter(names).items() if count > 1]
    if not again:
        return []
    found = f"names {len(again)} entries more than once, first: {again[0]}"
    return [Problem("repeated-lines", listed_in, found, "use the release's split file, or take the repetitions out")]


def overlapping(train: Path, train_names: Sequence[str], val: Path, val_names: Sequence[str]) -> list[Problem]:
    """Whether validation images are trained on."""
    both = sorted(set(train_names) & set(val_names))
    if not both:
        return []
    found = f"shares {len(both)} of its {len(train_names)} entries with {val.name}, first: {both[0]}"
    return [Problem("overlapping-splits", train, found, "train on none of the validation images")]


def counted(what: str, where: Path, found: int, expected: int | None) -> list[Problem]:
    """Whether a split has as many ``what`` as the official release; ``expected`` None where that is not asked."""
    if expected is None or found == expected:
        return []
    told = f"has {found:,} {what}, the official release {expected:,}"
    remedy = "unpack the whole release, with its own split file; if these are your own data, check with --own"
    return [Problem("count", where, told, remedy)]


def resized(path: Path, size: tuple[int, int], expected: Callable[[int, int], bool] | None, told: str) -> list[Problem]:
    """Whether a sampled picture has a size ``(H, W)`` that the release has; ``told`` says which those are."""
    if expected is None or expected(*size):
        return []
    found = f"is {size[0]}x{size[1]} pixels, the official release has {told}"
    return [Problem("size", path, found, "use the release's own files; for your own data, check with --own")]


def sample(items: Sequence[T]) -> list[T]:
    """At most ``SAMPLED`` of the items, evenly spread, first and last among them."""
    if len(items) <= SAMPLED:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, SAMPLED).astype(int)]


def read_picture(path: Path) -> tuple[str, NDArray[Any]] | Problem:
    """(mode, pixels) of a picture read to its last byte, as it is stored, or the problem that stops it."""
    if not is_there(path):
        return Problem("unreadable", path, "is no file", "copy or unpack the file again")
    try:
        picture = opened(path, str(path))
        return picture.mode, np.asarray(picture)
    except ValueError as error:
        return Problem("unreadable", path, f"cannot be decoded: {error}", "copy or unpack the file again")


def read_pair(image: Path, target: Path) -> tuple[list[Problem], tuple[str, NDArray[Any]] | None]:
    """An image and its mask or depth map: what is wrong with their files, and (mode, pixels) of the second."""
    second = read_picture(target)
    size = None if isinstance(second, Problem) else second[1].shape[:2]
    problems = [second] if isinstance(second, Problem) else []
    try:
        # As the probes read it: turned by EXIF where that fits.
        first = read_image(image, exif=True, over=None if size is None else lambda: size)
    except TurnedImageError as error:
        remedy = "remove the tag, having turned the pixels if the labels ask for it (exiftran -ai, jpegtran)"
        return [Problem("turned-by-exif", image, str(error), remedy), *problems], None
    except ValueError as error:
        remedy = "copy or unpack the file again"
        problems = [Problem("unreadable", image, f"cannot be decoded: {error}", remedy), *problems]
        return problems, None if isinstance(second, Problem) else second
    if isinstance(second, Problem):
        return [second], None
    if first.shape[:2] != size:
        found = f"is {second[1].shape[1]}x{second[1].shape[0]}, its image {first.shape[1]}x{first.shape[0]}"
        remedy = "use files of the same release: images and targets are pixel by pixel"
        return [Problem("size-mismatch", target, found, remedy)], None
    return [], second
