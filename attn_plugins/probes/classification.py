"""ImageNet: its folders, DINOv2's crops, and linear classifiers trained at once over one frozen forward pass."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import functional

from ..data.images import SUFFIXES
from ..files import read_lines
from .ownership import OwnedHead

__all__ = [
    "ClassifierGrid",
    "GridTop1",
    "ImageNetFolder",
    "PackImageLabel",
    "RandomResizedCrop",
    "ResizeCenterCrop",
    "classifier_name",
]


@DATASETS.register_module()
class ImageNetFolder(BaseDataset):
    """Images in one folder per class, or in one folder beside a labels file.

    Classes count the sorted class folders from 0.

    Args:
        data_prefix: ``img_path``, the folder of the split.
        ann_file: lines ``FILE CLASS`` with class numbers; without it, or where there is no such file, a folder a class.
        kwargs: of mmengine's ``BaseDataset``.

    Attributes of an entry: ``img_path``, ``gt_label``, and ``box_path``, its localisation XML, where there is one.

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
            for image in sorted(Path(entry.path) for entry in os.scandir(folder / name) if entry.is_file())
            if image.suffix.lower() in SUFFIXES and not image.name.startswith("._")
        ]

    def _from_labels(self, folder: Path) -> list[tuple[Path, int]]:
        file = Path(self.ann_file)
        if not self.ann_file or not file.is_file():
            raise ValueError(f"{folder} has no class folders, so a labels file is needed; ann_file={self.ann_file!r}")
        pairs = []
        for number, line in enumerate(read_lines(file), 1):
            words = line.split()
            if len(words) != 2 or not words[1].isdecimal():
                raise ValueError(f"{file}:{number}: expected 'FILE CLASS', got {line!r}")
            pairs.append((folder / words[0], int(words[1])))
        return pairs


@TRANSFORMS.register_module()
class RandomResizedCrop(BaseTransform):
    """torchvision's ``RandomResizedCrop``, bicubic (DINOv2, data/transforms.py), with torch's generator.

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
    """Shorter side to ``resize``, bicubic, then the centre ``crop`` (DINOv2, data/transforms.py).

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
    """``inputs``: uint8 ``[3, H, W]``; ``data_samples``: ``gt_label`` and the image's path."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = torch.from_numpy(np.ascontiguousarray(results["img"].transpose(2, 0, 1)))
        sample = BaseDataElement(metainfo={"img_path": results["img_path"]})
        sample.set_field(torch.tensor([results["gt_label"]]), "gt_label")
        return {"inputs": image, "data_samples": sample}


def classifier_name(rate: float, blocks: int = 1, avgpool: bool = False) -> str:
    """``lr_1e-03``, ``blocks4_avgpool_lr_1e-03``: the name of one classifier, and what learning rates are set by."""
    return ("" if blocks == 1 else f"blocks{blocks}_") + ("avgpool_" if avgpool else "") + f"lr_{rate:.0e}"


@MODELS.register_module()
class ClassifierGrid(OwnedHead, BaseModel):
    """Linear classifiers, one per learning rate; DINOv2, eval/linear.py.

    Every classifier sees the same features. Its learning rate is its parameter group's (``paramwise_cfg`` in the
    config), so one optimizer trains all.

    Args:
        backbone: config of a ``FrozenViT`` with ``norm=True, cls_token="tuple"`` and as many last layers as
            ``blocks`` needs.
        num_classes: classes.
        learning_rates: before scaling by total batch / 256; name the classifiers.
        blocks: numbers of last blocks whose [CLS] is concatenated; DINOv2 grids over 1 and 4.
        avgpool: whether the last block's mean patch is appended; DINOv2 grids over False and True.
        data_preprocessor: config.

    Raises:
        ValueError: the backbone gives fewer layers than ``blocks`` asks for, or no [CLS].
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        num_classes: int,
        learning_rates: Sequence[float],
        blocks: Sequence[int] = (1,),
        avgpool: Sequence[bool] = (False,),
        data_preprocessor: dict[str, Any] | None = None,
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        self.backbone = MODELS.build(backbone)
        channels = self.backbone.channels
        if self.backbone.cls_token != "tuple" or len(channels) < max(blocks):
            raise ValueError(
                f"classifiers over the last {max(blocks)} block(s) need a backbone with cls_token='tuple' and as many "
                f"out_indices; it has cls_token={self.backbone.cls_token!r} and {len(channels)}"
            )
        self.num_classes = num_classes
        self.classifiers = nn.ModuleDict()
        self.inputs: dict[str, tuple[int, bool]] = {}
        for count in blocks:
            for pooled in avgpool:
                for rate in learning_rates:
                    name = classifier_name(rate, count, pooled)
                    self.inputs[name] = (count, pooled)
                    linear = nn.Linear(sum(channels[-count:]) + (channels[-1] if pooled else 0), num_classes)
                    nn.init.normal_(linear.weight, mean=0.0, std=0.01)
                    nn.init.zeros_(linear.bias)
                    self.classifiers[name] = linear

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        """mmengine's interface.

        Args:
            inputs: ``[B, 3, H, W]``, normalised.
            data_samples: with ``gt_label``, an int64 tensor of one element.
            mode: ``tensor``: {classifier: logits ``[B, classes]``}; ``loss``: {name: loss}; ``predict``:
                ``data_samples`` with ``pred_labels``, {classifier: class}.
        """
        logits = self._logits(self._features(inputs))
        if mode == "tensor":
            return logits
        labels = torch.cat([sample.gt_label for sample in data_samples]).to(inputs.device)
        if mode == "loss":
            return self._losses(logits, labels, data_samples)
        predicted = {name: scores.argmax(1).tolist() for name, scores in logits.items()}
        for index, sample in enumerate(data_samples):
            sample.set_field({name: classes[index] for name, classes in predicted.items()}, "pred_labels")
        return data_samples

    def _features(self, inputs: Any) -> Sequence[tuple[Tensor, Tensor]]:
        features: Sequence[tuple[Tensor, Tensor]] = self.backbone(inputs)
        return features

    def _logits(self, features: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        inputs = {key: self._input(features, *key) for key in set(self.inputs.values())}
        return {name: linear(inputs[self.inputs[name]]) for name, linear in self.classifiers.items()}

    @staticmethod
    def _input(features: Sequence[tuple[Tensor, Tensor]], blocks: int, avgpool: bool) -> Tensor:
        parts = [cls for _, cls in features[-blocks:]]
        if avgpool:
            parts.append(features[-1][0].mean((2, 3)))
        return torch.cat(parts, dim=1)

    def _losses(self, logits: dict[str, Tensor], labels: Tensor, data_samples: Any) -> dict[str, Tensor]:
        wrong = ((labels < 0) | (labels >= self.num_classes)).nonzero().flatten().tolist()
        if wrong:
            named = ", ".join(f"{data_samples[i].img_path}: {int(labels[i])}" for i in wrong)
            raise ValueError(f"labels outside 0 to {self.num_classes - 1}: {named}; does num_classes fit the data set?")
        # The sum, so that each classifier has the gradient of its own loss alone.
        return {f"loss_{name}": nn.functional.cross_entropy(scores, labels) for name, scores in logits.items()}


@METRICS.register_module()
class GridTop1(BaseMetric):
    """Top-1 accuracy in percent of every classifier of the grid, and the best of them as ``top1``.

    Attributes:
        images: {image's path: 100 where the best classifier is right, else 0} of the last evaluation.
    """

    default_prefix = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.images: dict[str, float] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Compare ``pred_labels`` with ``gt_label``."""
        for sample in data_samples:
            label = int(sample["gt_label"])
            hits = {name: label == guess for name, guess in sample["pred_labels"].items()}
            self.results.append((sample.get("img_path"), hits))

    def compute_metrics(self, results: list[tuple[str, dict[str, bool]]]) -> dict[str, float]:
        """``top1`` (the best), and ``top1_NAME`` for every classifier."""
        each = {name: 100 * sum(hit[name] for _, hit in results) / len(results) for name in results[0][1]}
        best = max(each, key=lambda name: each[name])
        self.images = {path: 100.0 * hit[best] for path, hit in results}
        return {"top1": max(each.values()), **{f"top1_{name}": value for name, value in each.items()}}
