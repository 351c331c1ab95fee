"""Images to analyse: a folder, or a data set that the probes know, in batches of one size, with boxes where known."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import SUFFIXES, is_image_file, read_image
from ..progress import Progress
from .boxes import Box, read_coco, read_xml, size_in_xml, sizes_in_coco

__all__ = ["Batch", "Images", "find_images"]

Size = tuple[int, int]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEPTH_SPLITS = {
    "train": {
        "nyudepthv2_train_files_with_gt.txt": "sync",
        "eigen_train_files_with_gt.txt": "",
        "SUNRGBD_train_splits.txt": "",
    },
    "val": {
        "nyudepthv2_test_files_with_gt.txt": "official_splits/test",
        "eigen_test_files_with_gt.txt": "",
        "SUNRGBD_val_splits.txt": "",
    },
}
"""Split files of NYUv2, KITTI and SUN RGB-D, lines "IMAGE DEPTH ...", and the folder that images are below."""


@dataclass(frozen=True)
class Batch:
    """Images of one size.

    Attributes:
        pixels: ``[B, 3, S, S]``, normalised with ImageNet's mean and standard deviation.
        boxes: for each image its boxes in these pixels; empty where none is known or none is left.
    """

    pixels: Tensor
    boxes: list[list[Box]]

    def rgb(self) -> np.ndarray:
        """``[B, S, S, 3]`` in [0, 1], to show."""
        pixels = self.pixels.cpu().permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
        return pixels.clamp(0, 1).numpy()


@dataclass(frozen=True)
class Images:
    """Image files, read when they are asked for: memory does not grow with their number.

    Attributes:
        files: the images.
        root: where they were found, for messages and provenance.
        annotations: gives the boxes of a file in its own pixels; None where nothing tells.
        sizes: gives (H, W) of the image that a file's boxes are of; None where they do not say.
    """

    files: tuple[Path, ...]
    root: Path
    annotations: Callable[[Path], list[Box]] | None = None
    sizes: Callable[[Path], Size | None] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, count: int | None, seed: int = 0) -> Images:
        """``count`` of the images, drawn without replacement, in their order; all of them if None."""
        if count is None or count >= len(self.files):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.files)), count))
        return replace(self, files=tuple(self.files[i] for i in chosen))

    def batches(
        self, size: int, batch: int = 32, device: str = "cpu", progress: Progress | None = None
    ) -> Iterator[Batch]:
        """Batches of ``size`` x ``size``: the shorter side is resized, the centre cut out, boxes follow."""
        for start in range(0, len(self.files), batch):
            files = self.files[start : start + batch]
            loaded = [self._load(file, size) for file in files]
            pixels = torch.stack([pixels for pixels, _ in loaded]).to(device)
            yield Batch(pixels, [boxes for _, boxes in loaded])
            if progress is not None:
                progress(start + len(files), len(self.files))

    def _load(self, file: Path, size: int) -> tuple[Tensor, list[Box]]:
        boxes = self.annotations(file) if self.annotations else []
        return _load(file, size, boxes, self.sizes(file) if boxes and self.sizes else None)


def _load(file: Path, size: int, boxes: Sequence[Box], over: Size | None = None) -> tuple[Tensor, list[Box]]:
    """`over`: (H, W) of the picture that the boxes are of."""

    def of_boxes() -> Size:
        if over is None:
            raise ValueError(
                f"{file} is turned by EXIF, and its boxes do not say for which size they are: remove the tag, having "
                "turned the pixels if the boxes ask for it (exiftran -ai, jpegtran)"
            )
        return over

    image = Image.fromarray(read_image(file, exif=True, over=of_boxes if boxes else None))
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    x, y = width / image.width, height / image.height
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255)
    moved = [(a * x - left, b * y - top, c * x - left, d * y - top) for a, b, c, d in boxes]
    cut = [tuple(min(max(edge, 0.0), float(size)) for edge in box) for box in moved]
    kept = [(a, b, c, d) for a, b, c, d in cut if c > a and d > b]
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1), kept


def find_images(root: Path, split: str = "val", annotations: Path | None = None) -> Images:
    """The images below ``root``.

    Known layouts are PASCAL VOC (``JPEGImages``, ``ImageSets``, ``Annotations``), ImageNet (``val``,
    ``Annotations/CLS-LOC``), ADE20K (``images/validation``), Cityscapes (``leftImg8bit/val``) and the split files
    of NYUv2, KITTI and SUN RGB-D; of anything else, every image file below the folder is taken.

    Args:
        root: the folder, or one image.
        split: "train" or "val", where the data set has splits.
        annotations: a COCO JSON file, or a folder of VOC or ImageNet XML files named like the images; by default
            the data set's own.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        ValueError: it holds no images.
    """
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist")
    files, folder = _layout(root, split)
    if not files:
        raise ValueError(f"no images below {root}: expected files with {', '.join(sorted(SUFFIXES))}")
    return Images(tuple(files), root, *_annotations(annotations or folder, root))


def _layout(root: Path, split: str) -> tuple[list[Path], Path | None]:
    """Image files, and the folder with their XML files if there is one."""
    if root.is_file():
        return [root], None
    names = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if names.is_file():
        return [root / "JPEGImages" / f"{name}.jpg" for name in names.read_text().split()], root / "Annotations"
    for name, below in DEPTH_SPLITS.get(split, {}).items():
        if (root / name).is_file():
            lines = [line.split()[0].lstrip("/") for line in (root / name).read_text().splitlines() if line.strip()]
            return [root / below / line for line in lines], None
    xml = root / "Annotations" / "CLS-LOC" / split
    for inside in (
        f"images/{split}idation" if split == "val" else "images/training",
        f"leftImg8bit/{split}",
        split,
        "",
    ):
        folder = root / inside
        files = sorted(file for file in folder.rglob("*") if is_image_file(file)) if folder.is_dir() else []
        if files:
            return files, xml if xml.is_dir() else None
    return [], None


def _annotations(
    source: Path | None, root: Path
) -> tuple[Callable[[Path], list[Box]] | None, Callable[[Path], Size | None] | None]:
    """What gives a file's boxes, and what gives the size that they are for."""
    if source is None:
        return None, None
    if source.is_file():
        coco = read_coco(source)
        by_name = {Path(name).name: boxes for name, boxes in coco.items()}
        sizes = {Path(name).name: size for name, size in sizes_in_coco(source).items()}
        return (lambda file: by_name.get(file.name, [])), (lambda file: sizes.get(file.name))
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist: annotations are a COCO JSON file or a folder of XML files")
    # ImageNet keeps train annotations in one folder a class, and val annotations in one folder for all.
    by_stem = {path.stem: path for path in source.rglob("*.xml")}
    return (
        lambda file: read_xml(by_stem[file.stem]) if file.stem in by_stem else [],
        lambda file: size_in_xml(by_stem[file.stem]),
    )
