"""PASCAL VOC 2012: JPEG images, indexed class masks with a void border, boxes as XML, image sets.

VOCdevkit/VOC2012/
    JPEGImages/2012_000001.jpg
    SegmentationClass/2012_000001.png     P mode, VOC colour map, 255 = void
    SegmentationObject/2012_000001.png    the same for instances
    Annotations/2012_000001.xml           boxes, 1-based and inclusive
    ImageSets/Segmentation/{train,val,trainval}.txt
    ImageSets/Main/{train,val,trainval}.txt, CLASS_{train,val}.txt   1 the image shows the class, -1 it does not
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from attn_plugins.data.layouts.common import (
    Progress,
    build_root,
    samples,
    save_image,
    save_labels,
    save_lines,
    void_border,
)
from attn_plugins.data.scenes import Box

__all__ = ["VOC_CLASSES", "VOID", "box_xml", "voc_palette", "write_voc"]

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
VOID = 255


def voc_palette() -> NDArray[np.uint8]:
    """VOC's colour map, [256, 3]: the bits of the id, three at a time, from the highest bit of R, G, B down."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def box_xml(folder: str, filename: str, size: tuple[int, int], boxes: list[tuple[str, Box]]) -> bytes:
    """A VOC annotation file; ``boxes`` pairs a class name with its box, ``size`` is (H, W)."""
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, **children: object) -> None:
        for tag, value in children.items():
            ElementTree.SubElement(parent, tag).text = str(value)

    height, width = size
    add(root, folder=folder, filename=filename)
    add(ElementTree.SubElement(root, "source"), database="attn_plugins rendered scenes")
    add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    add(root, segmented=1)
    for name, box in boxes:
        item = ElementTree.SubElement(root, "object")
        cut = box.xmin == 0 or box.ymin == 0 or box.xmax == width or box.ymax == height
        add(item, name=name, pose="Unspecified", truncated=int(cut), difficult=0)
        corners = ElementTree.SubElement(item, "bndbox")
        add(corners, xmin=box.xmin + 1, ymin=box.ymin + 1, xmax=box.xmax, ymax=box.ymax)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root)


def write_voc(
    root: str | Path,
    num_train: int = 200,
    num_val: int = 50,
    seed: int = 0,
    size: tuple[int, int] = (375, 500),
    *,
    progress: Progress | None = None,
) -> Path:
    """Write scenes as ``root/VOCdevkit/VOC2012``.

    Args:
        root: the folder that the VOC archive would be unpacked in.
        num_train, num_val: images in each split.
        seed: of the scenes.
        size: (H, W) in pixels.
        progress: called with (done, total) after each scene.

    Returns:
        The data root, ``root/VOCdevkit/VOC2012``; as it is when it was written with the same arguments.

    Raises:
        FileExistsError: it exists with other content.
    """
    parameters = {"num_train": num_train, "num_val": num_val, "seed": seed, "size": list(size)}

    def fill(folder: Path) -> None:
        palette = voc_palette()
        border = max(1, round(min(size) / 150))
        names: dict[str, list[str]] = {"train": [], "val": []}
        shown: dict[str, list[set[int]]] = {"train": [], "val": []}
        for kind in ("Annotations", "ImageSets"):
            (folder / kind).mkdir()
        for split, number, scene in samples(num_train, num_val, seed, size, progress=progress):
            name = f"2012_{number + 1 + (num_train if split == 'val' else 0):06d}"
            void = void_border(scene.instances, border)
            save_image(folder / "JPEGImages" / f"{name}.jpg", scene.image)
            for kind, ids in (("SegmentationClass", scene.mask), ("SegmentationObject", scene.instances)):
                save_labels(folder / kind / f"{name}.png", np.where(void, np.uint8(VOID), ids), palette)
            boxes = [(VOC_CLASSES[box.label - 1], box) for box in scene.boxes]
            (folder / "Annotations" / f"{name}.xml").write_bytes(box_xml("VOC2012", f"{name}.jpg", size, boxes))
            names[split].append(name)
            shown[split].append({box.label for box in scene.boxes})
        _write_image_sets(folder / "ImageSets", names, shown)

    return build_root(Path(root) / "VOCdevkit" / "VOC2012", "voc2012", parameters, fill)


def _write_image_sets(folder: Path, names: dict[str, list[str]], shown: dict[str, list[set[int]]]) -> None:
    for kind in ("Segmentation", "Main"):
        for split in ("train", "val"):
            save_lines(folder / kind / f"{split}.txt", names[split])
        save_lines(folder / kind / "trainval.txt", names["train"] + names["val"])
    for label, cls in enumerate(VOC_CLASSES, 1):
        for split in ("train", "val"):
            lines = [
                f"{name} {1 if label in labels else -1:2d}"
                for name, labels in zip(names[split], shown[split], strict=True)
            ]
            save_lines(folder / "Main" / f"{cls}_{split}.txt", lines)
