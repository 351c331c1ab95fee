"""Foreground boxes from PASCAL VOC XML, ImageNet localisation XML and COCO JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..files import read_json

__all__ = ["Box", "Objects", "Rule", "read_coco", "read_xml"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom edge in pixels; right and bottom are where the box ends, not its last pixel."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Objects:
    """What an annotation says of one image.

    Attributes:
        boxes: in the image's own pixels.
        difficult: for each, whether VOC calls it difficult to recognise.
        size: (H, W) of the image that they are of; None where it does not say.
    """

    boxes: tuple[Box, ...] = ()
    difficult: tuple[bool, ...] = ()
    size: Size | None = None


@dataclass(frozen=True)
class Rule:
    """Which images and boxes count.

    Attributes:
        difficult: whether objects count that VOC calls difficult; its own evaluations leave them out.
        single: whether only images with exactly one object count.
        below: only images in which every object covers less than this share of the picture; None for all.
    """

    difficult: bool = False
    single: bool = False
    below: float | None = None

    def __post_init__(self) -> None:
        if self.below is not None and not 0 < self.below <= 1:
            raise ValueError(f"below={self.below}; use a share of the image above 0 and up to 1, or None")

    def __str__(self) -> str:
        told = ["one object an image"] if self.single else []
        told += [f"objects below {100 * self.below:g} % of the image"] if self.below is not None else []
        return ", ".join([*told, "difficult ones too" if self.difficult else "difficult ones left out"])

    def allows(self, objects: Objects, size: Size) -> tuple[Box, ...] | None:
        """The boxes of an image of (H, W) pixels that count; None where the image does not.

        The share of an object is (xmax - xmin) (ymax - ymin) of its annotation over the image's H W, as LaSt-ViT's
        code has it: a box that ends where it begins is one pixel and has the share 0.
        """
        held = zip(objects.boxes, objects.difficult, strict=True)
        boxes = tuple(box for box, hard in held if self.difficult or not hard)
        large = self.below is not None and any(
            (right - left - 1) * (bottom - top - 1) >= self.below * size[0] * size[1]
            for left, top, right, bottom in boxes
        )
        return None if not boxes or large or (self.single and len(objects.boxes) != 1) else boxes


def read_xml(path: Path) -> Objects:
    """Objects of one image from an annotation of VOC or of ImageNet's localisation task.

    Both count pixels from 1 and include the last one, so ``xmin=1, xmax=4`` are four pixels, 0 to 4 here.

    Raises:
        ValueError: no XML, an object without a box, or a box of other things than finite numbers.
    """
    root = _root(path)
    boxes, difficult = [], []
    for item in root.iter("object"):
        box = item.find("bndbox")
        corners = [None if box is None else box.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")]
        if None in corners:
            raise ValueError(f"{path}: an object without xmin, ymin, xmax and ymax")
        left, top, right, bottom = _numbers(path, corners)
        boxes.append((left - 1, top - 1, right, bottom))
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    return Objects(tuple(boxes), tuple(difficult), _size(root))


def _size(root: ElementTree.Element) -> Size | None:
    """(H, W) where an annotation says it; some tools write zeros."""
    size = root.find("size")
    height, width = (None if size is None else size.findtext(name) for name in ("height", "width"))
    if not (height and width and height.isdecimal() and width.isdecimal() and max(len(height), len(width)) < 10):
        return None
    return (int(height), int(width)) if int(height) and int(width) else None


def read_coco(path: Path) -> dict[str, Objects]:
    """Objects by file name from a COCO annotation file (``bbox`` is left, top, width, height); crowds are left out.

    Raises:
        ValueError: the file is not COCO's, or a box is of other things than finite numbers.
    """
    content, boxes = read_json(path), defaultdict[str, list[Box]](list)
    try:
        names = {image["id"]: _name(image) for image in content["images"]}
        sizes = {_name(image): (image.get("height"), image.get("width")) for image in content["images"]}
        for item in content["annotations"]:
            if not item.get("iscrowd"):
                left, top, width, height = _numbers(path, item["bbox"])
                boxes[names[item["image_id"]]].append((left, top, left + width, top + height))
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no COCO annotation file: {type(error).__name__} {error}") from error
    return {
        name: Objects(
            tuple(boxes[name]),
            (False,) * len(boxes[name]),
            (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None,
        )
        for name, size in sizes.items()
    }


def _root(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    # LookupError and ValueError: an encoding that Python or expat does not know.
    except (ElementTree.ParseError, LookupError, ValueError, OSError) as error:
        raise ValueError(f"{path} is no XML: {error}") from error


def _name(image: Any) -> str:
    name = image["file_name"]
    if not isinstance(name, str):
        raise TypeError(f"file_name={name!r:.80}")
    return name


def _numbers(path: Path, corners: Any) -> list[float]:
    """Four finite numbers; NaN would be compared as if it were any."""
    try:
        numbers = [float(corner) for corner in corners]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{path}: a box is four finite numbers, not {corners!r:.80}")
    return numbers
