"""Images and depth maps that a list of lines ``IMAGE DEPTH [FOCAL]`` names, as links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attn_plugins.data.convert.plan import Link, inside
from attn_plugins.files import read_lines

__all__ = ["Pair", "listed", "pair_links"]


@dataclass(frozen=True)
class Pair:
    """One line: paths below the list's folders, the files that they are, and the line itself.

    Attributes:
        image: path of the image.
        depth: path of the depth map; None where the line has none.
        line: as it is written into a split file.
        files: the image's file, and the depth map's.
    """

    image: str
    depth: str | None
    line: str
    files: tuple[Path, ...]


def listed(listed_in: Path, images: Path, depths: Path, *, unmeasured: bool = False) -> list[Pair]:
    """The pairs of a list, all of whose files are there.

    Args:
        listed_in: the list.
        images: folder that its images are below.
        depths: folder that its depth maps are below.
        unmeasured: keep lines whose depth map is "None", as KITTI's test list has them.

    Raises:
        ValueError: no list, a line of another form, or files that are missing.
    """
    if not listed_in.is_file():
        raise ValueError(f"{listed_in} does not exist: put the list there, lines 'IMAGE DEPTH [FOCAL]'")
    pairs = []
    for number, line in enumerate(read_lines(listed_in), 1):
        words = line.split()
        if not words:
            continue
        if len(words) not in (2, 3):
            raise ValueError(f"{listed_in}:{number}: expected 'IMAGE DEPTH [FOCAL]', got {line!r}")
        image = inside(words[0], listed_in)
        if words[1] != "None":
            depth = inside(words[1], listed_in)
            told = " ".join([image, depth, *words[2:]])
            pairs.append(Pair(image, depth, told, (images / image, depths / depth)))
        elif unmeasured:
            pairs.append(Pair(image, None, " ".join([image, *words[1:]]), (images / image,)))
    if not pairs:
        raise ValueError(f"{listed_in} names no image with depth: use the list that belongs to these files")
    files = [file for pair in pairs for file in pair.files]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(files)} files of {listed_in} do not exist, first {missing[0]}: unpack them, "
            "or use the list that belongs to these files"
        )
    return pairs


def pair_links(pairs: Sequence[Pair], images: str, depths: str) -> list[Link]:
    """Links below the folders ``images`` and ``depths`` of OUT."""
    places = [
        (below, path, file)
        for pair in pairs
        for below, path, file in zip((images, depths), (pair.image, pair.depth), pair.files, strict=False)
    ]
    return [Link(f"{below}/{path}".lstrip("/"), str(file)) for below, path, file in places]
