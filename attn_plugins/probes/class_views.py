"""Classified images by stored features of fixed views: the fast classification probe's data."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import BaseDataElement
from mmseg.registry import DATASETS
from torch import Tensor

from .backbone import FrozenViT
from .classification import ResizeCenterCrop
from .views import VIEWS, StoredViews

__all__ = ["StoredClasses"]


@DATASETS.register_module()
class StoredClasses(StoredViews):
    """``StoredViews`` of images with a class: the centre crop of each, and mirrored.

    An entry's ``inputs`` are [CLS] of each layer and the mean patch of the last one, ``[C · (layers + 1)]``, float32;
    all of them are held in memory.

    Args:
        dataset: config of the data set, without a pipeline.
        image: config of the transform that reads an image.
        scale: (shortest side, side of the centre crop).
        views: 1, or 2 with the mirrored one.
        store: folder of the features.
    """

    of = VIEWS[:2]
    batch = 32

    def __init__(
        self,
        dataset: dict[str, Any],
        image: dict[str, Any],
        scale: tuple[int, int],
        views: int = 1,
        store: str = "work_dirs/features",
    ) -> None:
        super().__init__(dataset, image, scale, views, None, store)
        self.cut = ResizeCenterCrop(int(scale[0]), int(scale[1]))
        self.vectors = torch.empty(0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One view.

        Raises:
            ValueError: its features are not there.
        """
        if not len(self.vectors):
            raise ValueError("StoredClasses has no features yet: custom_hooks needs dict(type='FeatureStoreHook')")
        info = self.dataset.get_data_info(int(index) // len(self.views))
        sample = BaseDataElement(metainfo={"img_path": info["img_path"]})
        sample.set_field(torch.tensor([info["gt_label"]]), "gt_label")
        return {"inputs": self.vectors[int(index)], "data_samples": sample}

    def fill(self, backbone: FrozenViT, mean: Tensor, std: Tensor) -> int:
        """As ``StoredViews.fill``; then all features are read."""
        computed = super().fill(backbone, mean, std)
        self.vectors = torch.stack([self._vector(keys) for keys in self.keys])
        return computed

    def _vector(self, keys: list[str]) -> Tensor:
        layers = [self._kept(key) for key in keys]
        return torch.cat([*(layer["cls"] for layer in layers), layers[-1]["mean"]])

    def _reading(self) -> dict[str, Any]:
        return {**super()._reading(), "view of": "centre crop"}

    def _view(self, pixels: Any, factor: float, mirrored: bool) -> Any:
        cropped = self.cut.transform({"img": pixels})["img"]
        return cropped[:, ::-1] if mirrored else cropped

    def _tensors(self, cls_token: str, layer: Any, index: int) -> dict[str, Tensor]:
        patches, cls = layer
        return {"cls": cls[index].float(), "mean": patches[index].float().mean((1, 2))}
