"""ImageNet's folder layout and DINOv2's classification transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement
from mmseg.registry import DATASETS, TRANSFORMS
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from ..data.images import SUFFIXES

__all__ = ["ImageNetFolder", "PackImageLabel", "RandomResizedCrop", "ResizeCenterCrop"]


@DATASETS.register_module()
class ImageNetFolder(BaseDataset):
    """Images in one folder per class, or in one folder beside a labels file.

    Classes count the sorted class folders from 0.

    Args:
        data_prefix: `img_path`, the folder of the split.
        ann_file: lines `FILE CLASS` with class numbers; without it, or where there is no such file, a folder a class.
        kwargs: of mmengine's `BaseDataset`.

    Attributes of an entry: `img_path`, `gt_label`, and `box_path`, its localisation XML, where there is one.

    Raises:
        ValueError: no images, or a line that is not FILE CLASS.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """All images of the split, sorted."""
        folder = Path(self.data_prefix["img_path"])
        if not folder.is_dir():
            raise ValueError(f"{folder} is missing: expected ImageNet's folder of class folders or of images")
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        pairs = self._from_folders(folder, classes) if classes else self._from_labels(folder)
        if not pairs:
            raise ValueError(f"no image under {folder}: expected CLASS/IMAGE.JPEG, or images and a labels file")
        boxes = folder.parent / "Annotations" / "CLS-LOC" / folder.name
        entries = []
        for image, label in pairs:
            entry = {"img_path": str(image), "gt_label": label}
            for box in (boxes / image.parent.name / f"{image.stem}.xml", boxes / f"{image.stem}.xml"):
                if box.is_file():
                    entry["box_path"] = str(box)
            entries.append(entry)
        return entries

    @staticmethod
    def _from_folders(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
        return [
            (image, label)
            for label, name in enumerate(classes)
            for image in sorted((folder / name).iterdir())
            if image.suffix.lower() in SUFFIXES and not image.name.startswith("._")
        ]

    def _from_labels(self, folder: Path) -> list[tuple[Path, int]]:
        file = Path(self.ann_file)
        if not self.ann_file or not file.is_file():
            raise ValueError(f"{folder} has no class folders, so a labels file is needed; ann_file={self.ann_file!r}")
        pairs = []
        for number, line in enumerate(file.read_text().splitlines(), 1):
            words = line.split()
            if len(words) != 2 or not words[1].isdecimal():
                raise ValueError(f"{file}:{number}: expected 'FILE CLASS', got {line!r}")
            pairs.append((folder / words[0], int(words[1])))
        return pairs


@TRANSFORMS.register_module()
class RandomResizedCrop(BaseTransform):
    """torchvision's `RandomResizedCrop`, bicubic (DINOv2, data/transforms.py), with torch's generator.

    Args:
        size: pixels of a side.
    """

    def __init__(self, size: int = 224) -> None:
        self.size = size
        self.crop = transforms.RandomResizedCrop(size, interpolation=transforms.InterpolationMode.BICUBIC)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = np.asarray(self.crop(Image.fromarray(results["img"])))
        results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class ResizeCenterCrop(BaseTransform):
    """Shorter side to `resize`, bicubic, then the centre `crop` (DINOv2, data/transforms.py).

    Args:
        resize: pixels.
        crop: pixels of a side.
    """

    def __init__(self, resize: int = 256, crop: int = 224) -> None:
        self.resize = resize
        self.crop = crop

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = Image.fromarray(results["img"])
        image = functional.resize(image, self.resize, transforms.InterpolationMode.BICUBIC)
        results["img"] = np.asarray(functional.center_crop(image, self.crop))
        results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class PackImageLabel(BaseTransform):
    """`inputs`: uint8 `[3, H, W]`; `data_samples`: `gt_label` and the image's path."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = torch.from_numpy(np.ascontiguousarray(results["img"].transpose(2, 0, 1)))
        sample = BaseDataElement(metainfo={"img_path": results["img_path"]})
        sample.set_field(torch.tensor([results["gt_label"]]), "gt_label")
        return {"inputs": image, "data_samples": sample}
