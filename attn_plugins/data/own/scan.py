"""What a user's files hold: every one is read once, before anything is trained."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...files import sha256
from ...progress import Progress
from ..checks.files import Problem, read_pair
from ..images import ImageError, opened, read_image
from .pairs import Pair

__all__ = ["Found", "Value", "codes_of", "read_labels", "scan_depth", "scan_images", "scan_masks"]

Value = int | tuple[int, int, int]
"""A grey or palette value, or a colour."""

_MANY = 512
_COLOURS = ("RGB", "RGBA")
_GREYS = ("L", "LA", "P", "PA", "1", "I", "I;16", "I;16B", "I;16L")


@dataclass
class Found:
    """What was found in the files of some pairs.

    Attributes:
        problems: one for each file that cannot be used, with its remedy.
        bad: names of the pairs that cannot be used.
        sizes: {(H, W): how many}.
        pixels: {value: how many pixels have it} of masks; depths as stored, from the least to the most, of depth maps.
        images: {value: how many masks have it}.
        palette: {value: colour} of masks that are stored with one.
        digests: {SHA-256 of an image file: names}.
    """

    problems: list[Problem] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: Counter[Value] = field(default_factory=Counter)
    images: Counter[Value] = field(default_factory=Counter)
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    digests: dict[str, list[str]] = field(default_factory=dict)

    def refuse(self, name: str, problems: Iterable[Problem]) -> None:
        """Leave a pair out, for these reasons."""
        self.problems += problems
        self.bad.append(name)

    def same_in_both(self, train: Sequence[str], val: Sequence[str]) -> list[Problem]:
        """Images that are trained and validated on, under two names."""
        problems = []
        for names in self.digests.values():
            both = [name for name in names if name in set(train)], [name for name in names if name in set(val)]
            if all(both):
                found = f"is the same picture as {both[0][0]}, which is trained on"
                problems.append(Problem("overlapping-splits", Path(both[1][0]), found, "remove one of them"))
        return problems


def scan_masks(pairs: Sequence[Pair], progress: Progress | None = None) -> Found:
    """Read every image and mask: whether they can be, their sizes, and the values of the masks."""
    found = Found()
    for pair, (problems, digest, read) in _each(pairs, _read_mask, progress):
        if problems or read is None:
            found.refuse(pair.name, problems)
            continue
        values, counts, size, palette = read
        found.sizes[size] += 1
        found.pixels.update(dict(zip(values, counts, strict=True)))
        found.images.update(values)
        found.palette.update(palette)
        found.digests.setdefault(digest, []).append(pair.name)
    return found


def scan_depth(pairs: Sequence[Pair], progress: Progress | None = None) -> Found:
    """Read every image and depth map, which is a grey PNG of 16 bits where 0 is "not measured"."""
    found = Found()
    for pair, (problems, digest, read) in _each(pairs, _read_depth, progress):
        if problems or read is None:
            found.refuse(pair.name, problems)
            continue
        (low, high), size = read
        found.sizes[size] += 1
        found.pixels.update([low, high])
        found.digests.setdefault(digest, []).append(pair.name)
    return found


def scan_images(files: dict[str, Path], progress: Progress | None = None) -> Found:
    """Read every image."""
    found = Found()
    pairs = [Pair(name, path, path) for name, path in files.items()]
    for pair, (problems, digest, size) in _each(pairs, _read_image, progress):
        if problems or size is None:
            found.refuse(pair.name, problems)
            continue
        found.sizes[size] += 1
        found.digests.setdefault(digest, []).append(pair.name)
    return found


def _each(pairs: Sequence[Pair], read: Callable[[Pair], Any], progress: Progress | None) -> Iterable[tuple[Pair, Any]]:
    """Pillow decodes without Python's lock, so threads help."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for number, (pair, result) in enumerate(zip(pairs, pool.map(read, pairs), strict=True), 1):
            yield pair, result
            if progress is not None:
                progress(number, len(pairs))


def _read_mask(pair: Pair) -> tuple[list[Problem], str, Any]:
    problems, second = read_pair(pair.image, pair.target)
    if problems or second is None:
        return problems, "", None
    try:
        labels, palette = read_labels(pair.target)
        codes, counts = np.unique(codes_of(labels), return_counts=True)
    except ImageError as error:
        return (
            [Problem("labels", pair.target, str(error), "save masks as PNG with a value or a colour a class")],
            "",
            None,
        )
    if len(codes) > _MANY:
        found = f"has {len(codes)} different values, which is no mask of classes: saved as JPEG, resized or smoothed?"
        return [Problem("labels", pair.target, found, "save masks as PNG, resized with nearest neighbours")], "", None
    colours = labels.ndim == 3
    values = [_colour(int(code)) if colours else int(code) for code in codes]
    return [], sha256(pair.image), (values, counts.tolist(), labels.shape[:2], palette)


def _read_depth(pair: Pair) -> tuple[list[Problem], str, Any]:
    problems, second = read_pair(pair.image, pair.target)
    if problems or second is None:
        return problems, "", None
    mode, stored = second
    measured = stored[stored > 0] if stored.ndim == 2 else stored
    if not mode.startswith("I") or stored.ndim != 2 or stored.max() > 65535:
        remedy = "save depth as a grey PNG of 16 bits, in a fixed unit, 0 where nothing was measured"
        return [Problem("depth", pair.target, f"is a picture of kind {mode}", remedy)], "", None
    if not len(measured):
        return [Problem("depth", pair.target, "has no measured pixel", "remove the pair")], "", None
    return [], sha256(pair.image), ((int(measured.min()), int(measured.max())), stored.shape[:2])


def _read_image(pair: Pair) -> tuple[list[Problem], str, Any]:
    try:
        pixels = read_image(pair.image, exif=True)
    except ImageError as error:
        return [Problem("unreadable", pair.image, str(error), "copy the file again, or remove it")], "", None
    return [], sha256(pair.image), pixels.shape[:2]


def read_labels(path: str | Path) -> tuple[NDArray[Any], dict[int, tuple[int, int, int]]]:
    """A mask as it is stored, and the colours of its values where it has a palette.

    Returns:
        ``[H, W]`` values; ``[H, W, 3]`` where it is in colour.

    Raises:
        ImageError: it cannot be read, or has values that are no labels.
    """
    picture = opened(Path(path), str(path))
    if picture.mode not in _COLOURS + _GREYS:
        raise ImageError(f"{path} is a picture of kind {picture.mode}, whose values are no labels")
    if picture.mode == "1":
        picture = picture.convert("L")
    palette: dict[int, tuple[int, int, int]] = {}
    if picture.mode == "P":
        stored = np.asarray(picture.getpalette("RGB") or []).reshape(-1, 3)
        palette = {value: (int(r), int(g), int(b)) for value, (r, g, b) in enumerate(stored)}
    pixels = np.asarray(picture)
    if pixels.ndim == 3:
        pixels = pixels[..., :3] if picture.mode in _COLOURS else pixels[..., 0]
    return pixels, palette


def codes_of(labels: NDArray[Any]) -> NDArray[np.int64]:
    """One number a pixel: the value, or R·65536 + G·256 + B."""
    if labels.ndim == 2:
        return labels.astype(np.int64)
    numbers: NDArray[np.int64] = (labels.astype(np.int64) * (65536, 256, 1)).sum(2)
    return numbers


def _colour(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255
