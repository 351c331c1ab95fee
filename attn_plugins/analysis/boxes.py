"""Foreground boxes from PASCAL VOC XML, ImageNet localisation XML and COCO JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["Box", "read_coco", "read_xml", "size_in_xml", "sizes_in_coco"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom edge in pixels; right and bottom are where the box ends, not its last pixel."""


def read_xml(path: Path) -> list[Box]:
    """Boxes of one image from an annotation of VOC or of ImageNet's localisation task.

    Both count pixels from 1 and include the last one, so ``xmin=1, xmax=4`` are four pixels, 0 to 4 here.

    Raises:
        ValueError: no XML, or an object without a box.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XML: {error}") from error
    found = []
    for item in root.iter("object"):
        box = item.find("bndbox")
        corners = [None if box is None else box.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax")]
        if None in corners:
            raise ValueError(f"{path}: an object without xmin, ymin, xmax and ymax")
        left, top, right, bottom = (float(str(corner)) for corner in corners)
        found.append((left - 1, top - 1, right, bottom))
    return found


def size_in_xml(path: Path) -> tuple[int, int] | None:
    """(H, W) of the image that the boxes of an annotation are of, None where it does not say."""
    size = ElementTree.parse(path).getroot().find("size")
    height, width = (None if size is None else size.findtext(name) for name in ("height", "width"))
    return (int(height), int(width)) if height and width and height.isdigit() and width.isdigit() else None


def sizes_in_coco(path: Path) -> dict[str, tuple[int, int]]:
    """(H, W) by file name, of the images of a COCO file that say it."""
    images = json.loads(path.read_text())["images"]
    return {i["file_name"]: (i["height"], i["width"]) for i in images if "height" in i and "width" in i}


def read_coco(path: Path) -> dict[str, list[Box]]:
    """Boxes by file name from a COCO annotation file (``bbox`` is left, top, width, height); crowds are left out.

    Raises:
        ValueError: the file is not COCO's.
    """
    try:
        content = json.loads(path.read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        boxes: dict[str, list[Box]] = defaultdict(list)
        for item in content["annotations"]:
            if not item.get("iscrowd"):
                left, top, width, height = item["bbox"]
                boxes[names[item["image_id"]]].append((left, top, left + width, top + height))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no COCO annotation file: {type(error).__name__} {error}") from error
    return dict(boxes)
