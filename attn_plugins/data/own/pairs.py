"""Which image belongs to which mask or depth map, and which of them are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ...files import read_lines
from ..checks.files import Problem
from ..images import is_image_file

__all__ = ["Pair", "find_images", "find_pairs", "part_of"]

_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test", "testing"),
}


class Pair(NamedTuple):
    """An image and what lies over it, pixel by pixel.

    Attributes:
        name: the image's path below its folder, without suffix: ``train/0001``.
        image: file.
        target: the file of its mask or depth map.
    """

    name: str
    image: Path
    target: Path


def find_images(folder: Path) -> dict[str, Path]:
    """{name: file} of all images below a folder, sorted; the name is the path there, without suffix.

    Raises:
        ValueError: it is no folder, holds no image, or two that have the same name.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if is_image_file(path):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise ValueError(f"{found[name]} and {path} have the same name: rename or remove one of them")
            found[name] = path
    if not found:
        raise ValueError(f"no image below {folder}: expected files such as 0001.jpg or 0001.png")
    return found


def find_pairs(images: Path, targets: Path) -> tuple[list[Pair], list[Problem]]:
    """Pairs by name, sorted, and what is left over on either side.

    A target may have an ending that its image has not (``0001_mask.png`` of ``0001.jpg``), the same for all.

    Args:
        images: folder of images, with folders below it or without.
        targets: folder of masks or depth maps, with the same folders.

    Raises:
        ValueError: not a single pair; the first names of both sides are told.
    """
    ours, theirs = find_images(images), find_images(targets)
    ending = _ending(ours, theirs)
    plain = {name.removesuffix(ending): path for name, path in theirs.items() if name.endswith(ending)}
    pairs = [Pair(name, path, plain[name]) for name, path in ours.items() if name in plain]
    if not pairs:
        raise ValueError(
            f"no image of {images} has the name of a file of {targets}: {', '.join([*ours][:3])} there, "
            f"{', '.join([*theirs][:3])} here. A pair has the same path below the two folders, but for the suffix and "
            "an ending such as _mask"
        )
    problems = [
        Problem("orphan", path, f"has no partner in {targets}", "add it, or remove the image")
        for name, path in ours.items()
        if name not in plain
    ]
    used = {pair.target for pair in pairs}
    problems += [
        Problem("orphan", path, f"has no image in {images}", "add it, or remove this file")
        for path in theirs.values()
        if path not in used
    ]
    return pairs, problems


def _ending(ours: Collection[str], theirs: Collection[str]) -> str:
    """What targets' names have behind their images': "" or ``_mask``; the one that makes most pairs."""
    counts: dict[str, int] = {"": sum(name in ours for name in theirs)}
    if counts[""] < len(theirs):
        for name in theirs:
            stem = max((own for own in _starts(name) if own in ours), key=len, default=None)
            if stem is not None and stem != name:
                counts[name[len(stem) :]] = counts.get(name[len(stem) :], 0) + 1
    return max(counts, key=lambda ending: (counts[ending], -len(ending)))


def _starts(name: str) -> list[str]:
    return [name[:end] for end in range(1, len(name))]


def part_of(
    names: Sequence[str], part: str, share: float = 0.2, lists: tuple[str | Path, str | Path] | None = None
) -> tuple[list[str], str]:
    """The names of one part, and how the parts were made.

    By lists; else by folders ``train`` and ``val`` (or ``test``) on top; else by digests of the names, so that the same
    names are parted alike on every machine.

    Args:
        names: of all images.
        part: ``train`` or ``val``.
        share: of the images that are validated on, where nothing else tells.
        lists: files of names of the training and the validation images, a name a line; suffixes do not count.

    Raises:
        ValueError: a share outside 0 to 1, a listed name that is no image's, or a part that is empty.
    """
    if lists is not None:
        chosen = _listed(names, Path(lists[part == "val"]))
        told = f"listed in {Path(lists[part == 'val']).name}"
    elif len({name.split("/")[0] for name in names} & {n for group in _FOLDERS.values() for n in group}) > 1:
        chosen = [name for name in names if name.split("/")[0] in _FOLDERS[part]]
        told = f"folder {', '.join(sorted({name.split('/')[0] for name in chosen}))}"
    else:
        if not 0 < share < 1:
            raise ValueError(f"val share {share} is not between 0 and 1")
        order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        count = min(max(round(share * len(names)), 1), len(names) - 1)
        held = set(order[:count])
        chosen = [name for name in names if (name in held) == (part == "val")]
        told = f"{'' if part == 'val' else 'all but '}{share:.0%}, drawn by the digests of the names"
    if not chosen:
        raise ValueError(f"no image to {'train' if part == 'train' else 'validate'} on: {len(names)} found, {told}")
    return chosen, told


def _listed(names: Sequence[str], file: Path) -> list[str]:
    known = {name: name for name in names} | {name.rsplit("/", 1)[-1]: name for name in names}
    wanted = [line.strip() for line in read_lines(file) if line.strip()]
    found = [known.get(line) or known.get(str(Path(line).with_suffix(""))) for line in wanted]
    missing = [line for line, name in zip(wanted, found, strict=True) if name is None]
    if missing:
        raise ValueError(f"{file} lists {missing[0]!r}, which is no image's name ({len(missing)} such lines)")
    return sorted({name for name in found if name is not None})
