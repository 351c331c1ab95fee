"""Probes as mmseg segmentors: a frozen backbone, and a head that is sized from it."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models.segmentors import DepthEstimator, EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor

from .ownership import OwnedHead

__all__ = ["DepthProbe", "LinearProbe"]


class _SizedHead:
    """The head takes its input channels from the backbone."""

    backbone: Any

    def _init_decode_head(self, decode_head: Any) -> None:
        super()._init_decode_head({"in_channels": self.backbone.channels, **decode_head})  # type: ignore[misc]


@MODELS.register_module()
class LinearProbe(OwnedHead, _SizedHead, EncoderDecoder):
    """mmseg's `EncoderDecoder` whose head is sized from a `FrozenViT`."""


@MODELS.register_module()
class DepthProbe(OwnedHead, _SizedHead, DepthEstimator):
    """mmseg's `DepthEstimator` whose head is sized from a `FrozenViT`.

    `test_cfg`: `flip=True` averages the depth with that of the mirrored image (DINOv2 evaluates so); images are taken
    whole.
    """

    def inference(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Depth `[B, 1, H, W]` in metres of `inputs [B, 3, H, W]`, normalised."""
        if not self.test_cfg.get("flip", False):
            return self.encode_decode(inputs, batch_img_metas)
        both = self.encode_decode(torch.cat([inputs, inputs.flip(3)]), [*batch_img_metas, *batch_img_metas])
        depth, mirrored = both.chunk(2)
        return (depth + mirrored.flip(3)) / 2
