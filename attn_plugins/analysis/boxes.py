"""Foreground boxes from PASCAL VOC XML, ImageNet localisation XML and COCO JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..files import read_json

__all__ = ["Box", "read_coco", "read_xml", "size_in_xml", "sizes_in_coco"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom edge in pixels; right and bottom are where the box ends, not its last pixel."""


def read_xml(path: Path) -> list[Box]:
    """Boxes of one image from an annotation of VOC or of ImageNet's localisation task.

    Both count pixels from 1 and include the last one, so ``xmin=1, xmax=4`` are four pixels, 0 to 4 here.

    Raises:
        ValueError: no XML, an object without a box, or a box of other things than finite numbers.
    """
    found = []
    for item in _root(path).iter("object"):
        box = item.find("bndbox")
        corners = [None if box is None else box.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")]
        if None in corners:
            raise ValueError(f"{path}: an object without xmin, ymin, xmax and ymax")
        left, top, right, bottom = _numbers(path, corners)
        found.append((left - 1, top - 1, right, bottom))
    return found


def size_in_xml(path: Path) -> tuple[int, int] | None:
    """(H, W) of the image that the boxes of an annotation are of, None where it does not say.

    Raises:
        ValueError: no XML.
    """
    size = _root(path).find("size")
    height, width = (None if size is None else size.findtext(name) for name in ("height", "width"))
    if not (height and width and height.isdecimal() and width.isdecimal() and max(len(height), len(width)) < 10):
        return None
    return int(height), int(width)


def read_coco(path: Path) -> dict[str, list[Box]]:
    """Boxes by file name from a COCO annotation file (``bbox`` is left, top, width, height); crowds are left out.

    Raises:
        ValueError: the file is not COCO's, or a box is of other things than finite numbers.
    """
    content, boxes = read_json(path), defaultdict[str, list[Box]](list)
    try:
        names = {image["id"]: _name(image) for image in content["images"]}
        for item in content["annotations"]:
            if not item.get("iscrowd"):
                left, top, width, height = _numbers(path, item["bbox"])
                boxes[names[item["image_id"]]].append((left, top, left + width, top + height))
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no COCO annotation file: {type(error).__name__} {error}") from error
    return dict(boxes)


def sizes_in_coco(path: Path) -> dict[str, tuple[int, int]]:
    """(H, W) by file name, of the images of a COCO file that say it.

    Raises:
        ValueError: the file is not COCO's.
    """
    try:
        return {
            _name(image): (image["height"], image["width"])
            for image in read_json(path)["images"]
            if isinstance(image.get("height"), int) and isinstance(image.get("width"), int)
        }
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no COCO annotation file: {type(error).__name__} {error}") from error


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
