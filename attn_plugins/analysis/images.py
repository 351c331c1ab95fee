"""Images to analyse: a folder, or a data set that the probes know, in batches of one size, with boxes where known."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.images import SUFFIXES, is_image_file, opened, read_image
from ..files import read_lines
from ..progress import Progress
from .boxes import Box, Objects, Rule, read_coco, read_xml

__all__ = ["Batch", "Images", "Sources", "View", "find_images"]

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
class View:
    """How a picture becomes a square: the shorter side is resized, the centre cut out.

    Attributes:
        size: side of the square in pixels.
        resize: what the shorter side is made first; None: ``size``, so that nothing is lost of it.
        bilinear: resize as torchvision's ``Resize`` does by default; otherwise bicubic.
    """

    size: int = 224
    resize: int | None = None
    bilinear: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}; use a number of at least 1")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize={self.resize} is below size={self.size}, to which the picture is cut afterwards")

    def __str__(self) -> str:
        how = "bilinear" if self.bilinear else "bicubic"
        return f"shorter side {self.resize or self.size} ({how}), centre {self.size} x {self.size}"

    def inside(self, size: Size) -> tuple[int, int, int, int]:
        """Width and height of a picture of (H, W) once it is resized, and left and top of the square in it."""
        height, width = size
        short = self.resize or self.size
        # torchvision's Resize cuts the longer side's pixels off, and its CenterCrop rounds.
        long = int(short * max(size) / min(size))
        wide, high = (short, long) if width <= height else (long, short)
        return wide, high, round((wide - self.size) / 2), round((high - self.size) / 2)


@dataclass(frozen=True)
class Batch:
    """Images of one size.

    Attributes:
        pixels: ``[B, 3, S, S]``, normalised with ImageNet's mean and standard deviation.
        boxes: for each image its boxes in these pixels; empty where none is known, allowed or left.
        objects: for each image its boxes in the picture's own pixels, and the picture's size; the same boxes, before
            anything is cut away.
        masks: ``[B, S, S]`` of class numbers, int64, where ``Images.masks`` gives them.
    """

    pixels: Tensor
    boxes: list[list[Box]]
    objects: list[tuple[tuple[Box, ...], Size]] = field(default_factory=list)
    masks: Tensor | None = None

    def rgb(self) -> NDArray[np.float32]:
        """``[B, S, S, 3]`` in [0, 1], to show."""
        pixels = self.pixels.cpu().permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
        return pixels.clamp(0, 1).numpy()


@dataclass(frozen=True)
class Images:
    """Image files, read when they are asked for: memory does not grow with their number.

    Attributes:
        files: the images.
        root: where they were found, for messages and provenance.
        annotations: gives the objects of a file; None where nothing tells.
        masks: gives the class mask of a file; None where there are none.
    """

    files: tuple[Path, ...]
    root: Path
    annotations: Callable[[Path], Objects] | None = None
    masks: Callable[[Path], Path] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, count: int | None, seed: int = 0) -> Images:
        """``count`` of the images, drawn without replacement, in their order; all of them if None."""
        if count is None or count >= len(self.files):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.files)), count))
        return replace(self, files=tuple(self.files[i] for i in chosen))

    def batches(
        self,
        view: View | int,
        batch: int = 32,
        device: str = "cpu",
        progress: Progress | None = None,
        rule: Rule | None = None,
    ) -> Iterator[Batch]:
        """Batches of squares; boxes and masks follow the pixels.

        Args:
            view: how pictures become squares; a number is ``View`` of that size.
            batch: images in each.
            device: where pixels go.
            progress: told after each.
            rule: which boxes count; by default all but difficult ones.

        Raises:
            ImageError: a picture cannot be read.
            ValueError: boxes or a mask are of a picture of another size.
        """
        view = View(view) if isinstance(view, int) else view
        for start in range(0, len(self.files), batch):
            files = self.files[start : start + batch]
            shown = [_load(file, view, self, rule or Rule()) for file in files]
            masks = [one.mask for one in shown if one.mask is not None]
            yield Batch(
                torch.stack([one.pixels for one in shown]).to(device),
                [one.boxes for one in shown],
                [(one.objects, one.size) for one in shown],
                torch.stack(masks).to(device) if masks else None,
            )
            if progress is not None:
                progress(start + len(files), len(self.files))


@dataclass(frozen=True)
class Sources:
    """The images of an analysis; what needs boxes or masks may have images of its own.

    Attributes:
        images: what everything else is over.
        boxed: images with boxes; None where there are none.
        masked: images with masks; None where there are none.
    """

    images: Images
    boxed: Images | None = None
    masked: Images | None = None

    @classmethod
    def of(cls, images: Images | Sources) -> Sources:
        """One set of images for all, as far as it has boxes and masks."""
        if isinstance(images, Sources):
            return images
        return cls(images, images if images.annotations else None, images if images.masks else None)


@dataclass(frozen=True)
class _Shown:
    """One image of a batch."""

    pixels: Tensor
    boxes: list[Box]
    objects: tuple[Box, ...]
    size: Size
    mask: Tensor | None


def _load(file: Path, view: View, images: Images, rule: Rule) -> _Shown:
    told = images.annotations(file) if images.annotations else Objects()

    def of_boxes() -> Size:
        if told.size is None:
            raise ValueError(
                f"{file} is turned by EXIF, and its boxes do not say for which size they are: remove the tag, having "
                "turned the pixels if the boxes ask for it (exiftran -ai, jpegtran)"
            )
        return told.size

    image = Image.fromarray(read_image(file, exif=True, over=of_boxes if told.boxes else None))
    size = (image.height, image.width)
    if told.boxes and told.size is not None and told.size != size:
        raise ValueError(
            f"{file} is {size[0]}x{size[1]} and its annotation is of a picture of {told.size[0]}x{told.size[1]}: boxes "
            "are of another file; give the annotations that belong to these pictures (--annotations)"
        )
    wide, high, left, top = view.inside(size)
    square = (left, top, left + view.size, top + view.size)
    kind = Image.Resampling.BILINEAR if view.bilinear else Image.Resampling.BICUBIC
    pixels = torch.from_numpy(np.asarray(image.resize((wide, high), kind).crop(square), np.float32) / 255)
    boxes = rule.allows(told, size) or ()
    x, y = wide / image.width, high / image.height
    moved = [(a * x - left, b * y - top, c * x - left, d * y - top) for a, b, c, d in boxes]
    cut = [tuple(min(max(edge, 0.0), float(view.size)) for edge in box) for box in moved]
    kept = [(a, b, c, d) for a, b, c, d in cut if c > a and d > b]
    mask = None if images.masks is None else _load_mask(images.masks(file), file, size, (wide, high), square)
    normalised = ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
    return _Shown(normalised, kept, boxes, size, mask)


def _load_mask(path: Path, file: Path, size: Size, resized: Size, square: tuple[int, int, int, int]) -> Tensor:
    """Class numbers ``[S, S]`` of a mask of one channel, whose colours (a palette) are not looked at."""
    mask = opened(path, str(path))
    if (mask.height, mask.width) != size:
        raise ValueError(f"{path} is {mask.height}x{mask.width}, and {file}, over which it lies, {size[0]}x{size[1]}")
    if len(mask.getbands()) != 1:
        raise ValueError(f"{path} is {mask.mode}: a mask has one channel, of class numbers")
    cut = mask.resize(resized, Image.Resampling.NEAREST).crop(square)
    return torch.from_numpy(np.asarray(cut).astype(np.int64))


def find_images(root: Path, split: str = "val", annotations: Path | None = None, masks: Path | None = None) -> Images:
    """The images below ``root``.

    Known layouts are PASCAL VOC (``JPEGImages``, ``Annotations``, ``ImageSets`` where there are splits), ImageNet
    (``val``, ``Annotations/CLS-LOC``), ADE20K (``images/validation``), Cityscapes (``leftImg8bit/val``) and the split
    files of NYUv2, KITTI and SUN RGB-D; of anything else, every image file below the folder is taken.

    Args:
        root: the folder, or one image.
        split: "train" or "val", where the data set has splits.
        annotations: a COCO JSON file, or a folder of VOC or ImageNet XML files named like the images; by default
            the data set's own.
        masks: a folder of class masks (PNG of one channel) named like the images; no default.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        ValueError: it holds no images.
    """
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist")
    files, folder = _layout(root, split)
    if not files:
        raise ValueError(f"no images below {root}: expected files with {', '.join(sorted(SUFFIXES))}")
    objects = _annotations(annotations or folder)
    return Images(tuple(files), root, objects, None if masks is None else _masks(masks))


def _layout(root: Path, split: str) -> tuple[list[Path], Path | None]:
    """Image files, and the folder with their XML files if there is one."""
    if root.is_file():
        return [root], None
    names = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if names.is_file():
        return [
            root / "JPEGImages" / f"{name}.jpg" for line in read_lines(names) for name in line.split()
        ], root / "Annotations"
    for name, below in DEPTH_SPLITS.get(split, {}).items():
        if (root / name).is_file():
            lines = [line.split()[0].lstrip("/") for line in read_lines(root / name) if line.strip()]
            return [root / below / line for line in lines], None
    pictures = root / "JPEGImages"
    if pictures.is_dir():
        files = sorted(file for file in pictures.rglob("*") if is_image_file(file))
        return files, root / "Annotations" if (root / "Annotations").is_dir() else None
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


def _annotations(source: Path | None) -> Callable[[Path], Objects] | None:
    """What gives a file's objects."""
    if source is None:
        return None
    if source.is_file():
        by_name = {Path(name).name: objects for name, objects in read_coco(source).items()}
        return lambda file: by_name.get(file.name, Objects())
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist: annotations are a COCO JSON file or a folder of XML files")
    # ImageNet keeps train annotations in one folder a class, and val annotations in one folder for all.
    by_stem = {path.stem: path for path in source.rglob("*.xml")}
    return lambda file: read_xml(by_stem[file.stem]) if file.stem in by_stem else Objects()


def _masks(folder: Path) -> Callable[[Path], Path]:
    """What gives a file's class mask."""
    by_stem = {path.stem: path for path in sorted(folder.rglob("*.png"))}
    if not by_stem:
        raise FileNotFoundError(f"{folder} has no PNG file: masks are a folder of PNG files named like the images")

    def mask_of(file: Path) -> Path:
        # Cityscapes' masks are called like their images but for the last word.
        stems = (file.stem, file.stem.removesuffix("_leftImg8bit") + "_gtFine_labelTrainIds")
        found = next((by_stem[stem] for stem in stems if stem in by_stem), None)
        if found is None:
            raise ValueError(f"no mask below {folder} is called {file.stem}.png, as {file} is")
        return found

    return mask_of
