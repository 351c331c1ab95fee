"""Depth data sets by stored features of fixed views: the fast depth probe's data."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.structures import PixelData
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample
from numpy.typing import NDArray
from torch import Tensor

from ..views import VIEWS, StoredViews

__all__ = ["StoredDepth"]


@DATASETS.register_module()
class StoredDepth(StoredViews):
    """``StoredViews`` of images with depth maps, at their own size: as they are, and mirrored.

    Other scales are no views of depth, as an object twice as large is half as far away.

    Args:
        kwargs: of ``StoredViews``; the data set's pipeline reads image and depth map and crops both.
    """

    of = VIEWS[:2]
    target = ("depth_map_path", "gt_depth_map", np.float32)

    def _pixels(self, number: int, info: dict[str, Any]) -> NDArray[Any]:
        pixels: NDArray[Any] = self.dataset[number]["img"]
        return pixels

    def _reading(self) -> dict[str, Any]:
        return {**super()._reading(), "pipeline": self.told}

    def _sample(self, labels: Tensor) -> SegDataSample:
        return SegDataSample(gt_depth_map=PixelData(data=labels[None]))
