"""What a conversion is: which files of OUT are linked, which are written, and what decides about them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Converter", "Link", "Options", "Plan", "Write", "as_jpeg", "as_png", "inside", "lines"]


class Link(NamedTuple):
    """A file that stays what it is: ``target`` below OUT becomes another name of ``source``, or a copy of it."""

    target: str
    source: str


class Write(NamedTuple):
    """A file that is made: ``content`` gives its bytes, and is not asked where ``target`` is there already."""

    target: str
    content: Callable[[], bytes]


@dataclass(frozen=True)
class Options:
    """What a user may say beyond the source.

    Attributes:
        filled: NYUv2's depth maps whose holes were filled, instead of the measured ones.
    """

    filled: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that one conversion does; nothing has been written when it is made.

    Attributes:
        items: the files of OUT in their order. Each is consumed before the next is asked for.
        total: how many items there are.
        lists: {split file: its text}, written last: a half converted OUT has none.
        decided_by: files whose contents decide the result; with others OUT is not continued.
        notes: what the result differs in from what a user may expect, for the user.
    """

    items: Iterable[Link | Write]
    total: int
    lists: Mapping[str, str] = field(default_factory=dict)
    decided_by: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converter:
    """One way in which a data set is shipped.

    Attributes:
        name: it is written into OUT, so that no other continues there.
        reads: the files by which it is recognised, as a user sees them.
        recognises: whether a folder (or file) is shipped in this way.
        plan: raises ValueError, naming what is wrong and the remedy, before anything is written.
        options: names of the ``Options`` that it takes.
        as_is: the probes read the source without a conversion, too.
    """

    name: str
    reads: str
    recognises: Callable[[Path], bool]
    plan: Callable[[Path, Options], Plan]
    options: frozenset[str] = frozenset()
    as_is: bool = False


def inside(path: str, named_in: Path) -> str:
    """A path of a list as it is below a folder, without a slash in front.

    Raises:
        ValueError: it leads out of the folder, or is none.
    """
    parts = PurePosixPath(path.lstrip("/")).parts
    if not parts or ".." in parts:
        raise ValueError(f"{named_in} names {path!r}, which is no path below its folder: correct the line")
    return "/".join(parts)


def lines(texts: Iterable[str]) -> str:
    """The text of a split file."""
    return "".join(f"{text}\n" for text in texts)


def as_png(pixels: NDArray[Any], palette: NDArray[np.uint8] | None = None) -> bytes:
    """[H, W] uint8 ids or uint16 depth as a PNG; indexed with ``palette`` [256, 3], grey without."""
    picture = Image.fromarray(pixels)
    if palette is not None:
        picture.putpalette(palette.tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def as_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """[H, W, 3] RGB as a JPEG of quality 95."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()
