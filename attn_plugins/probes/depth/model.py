"""Depth as a mean over bins of one linear layer's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import DepthEstimator
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor

from ..ownership import OwnedHead, SizedHead, joined

__all__ = ["DepthBinsHead", "DepthProbe"]


@MODELS.register_module()
class DepthProbe(OwnedHead, SizedHead, DepthEstimator):
    """mmseg's ``DepthEstimator`` whose head is sized from a ``FrozenViT``.

    ``test_cfg``: ``flip=True`` averages the depth with that of the mirrored image (DINOv2 evaluates so); images are
    taken whole.
    """

    def inference(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Depth ``[B, 1, H, W]`` in metres of ``inputs [B, 3, H, W]``, normalised."""
        if not self.test_cfg.get("flip", False):
            depth: Tensor = self.encode_decode(inputs, batch_img_metas)
            return depth
        both: Tensor = self.encode_decode(torch.cat([inputs, inputs.flip(3)]), [*batch_img_metas, *batch_img_metas])
        count = inputs.shape[0]  # slices, since an export would fix the batch for chunk
        return (both[:count] + both[count:].flip(3)) / 2


@MODELS.register_module()
class DepthBinsHead(BaseDecodeHead):
    """Depth as a mean over uniform bins; DINOv2, hub/depth/decode_heads.py ``BNHead`` ("UD" bins, "linear" norm).

    Features are concatenated and mapped to bin logits by a 1x1 convolution, upsampled bilinearly;
    p = (relu(logit) + 0.1) normalised, depth = Σ bin · p. DINOv2 upsamples the features and convolves then; the two
    commute, and this order needs a sixteenth of the memory.

    Args:
        in_channels: channels of each feature map; ``DepthProbe`` fills them in from the backbone.
        min_depth: metres, the first bin.
        max_depth: metres, the last bin.
        n_bins: bins.
        upsample: factor between feature grid and depth map.
        kwargs: of mmseg's ``BaseDecodeHead``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        min_depth: float,
        max_depth: float,
        n_bins: int = 256,
        upsample: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=n_bins, init_cfg=None, **joined(in_channels), **kwargs)
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.upsample = upsample
        self.register_buffer("bins", torch.linspace(min_depth, max_depth, n_bins), persistent=False)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Depth ``[B, 1, upsample · h, upsample · w]`` in metres from feature maps ``[B, C, h, w]``."""
        logits = self.cls_seg(self._transform_inputs(inputs))
        logits = resize(logits, scale_factor=self.upsample, mode="bilinear", align_corners=self.align_corners)
        weights = torch.relu(logits) + 0.1
        return torch.einsum("bkhw,k->bhw", weights, self.bins)[:, None] / weights.sum(1, keepdim=True)

    def loss_by_feat(self, prediction: Tensor, batch_data_samples: Any) -> dict[str, Tensor]:
        """Losses of the depth, resized to the ground truth's size.

        Args:
            prediction: ``[B, 1, h, w]``.
            batch_data_samples: with ``gt_depth_map`` ``[1, H, W]`` in metres, 0 = not measured.
        """
        target = torch.stack([sample.gt_depth_map.data for sample in batch_data_samples])
        prediction = resize(
            prediction, size=target.shape[2:], mode="bilinear", align_corners=self.align_corners, warning=False
        )
        losses = {loss.loss_name: loss(prediction, target) for loss in self.loss_decode}
        # Kept in the log, without `loss` in its name: an image without a valid pixel contributes nothing.
        losses["images_without_depth"] = (target.flatten(1) <= 0).all(1).sum().float()
        return losses

    def predict_by_feat(self, prediction: Tensor, batch_img_metas: Any) -> Tensor:
        """Depth clamped to the range, then resized to the images' size ``[B, 1, H, W]``."""
        prediction = prediction.clamp(self.min_depth, self.max_depth)
        size = batch_img_metas[0]["img_shape"][:2]
        resized: Tensor = resize(
            prediction, size=size, mode="bilinear", align_corners=self.align_corners, warning=False
        )
        return resized
