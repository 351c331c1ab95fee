"""Decode heads: batch norm and one linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor

from .norm import GlobalBatchNorm

__all__ = ["BNLinearHead"]


@MODELS.register_module()
class BNLinearHead(BaseDecodeHead):
    """Batch norm over the channels, then a 1×1 convolution; DINOv2, eval/segmentation/…/linear_head.py `BNHead`.

    Args:
        in_channels: channels of each feature map; `LinearProbe` fills them in from the backbone.
        num_classes: classes.
        kwargs: of mmseg's `BaseDecodeHead`.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, **kwargs: Any) -> None:
        super().__init__(
            in_channels=list(in_channels),
            channels=sum(in_channels),
            num_classes=num_classes,
            in_index=list(range(len(in_channels))),
            input_transform="resize_concat",
            dropout_ratio=0,
            **kwargs,
        )
        self.bn = GlobalBatchNorm(self.channels)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Class logits `[B, classes, h, w]` from feature maps `[B, C, h, w]`, resized to the first and concatenated."""
        return self.cls_seg(self.bn(self._transform_inputs(inputs)))
