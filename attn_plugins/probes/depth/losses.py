"""Depth losses of DINOv2: scale-invariant log loss with warm-up, and log-gradient loss."""

from __future__ import annotations

import torch
from mmengine.logging import MessageHub
from mmseg.registry import MODELS
from torch import Tensor, nn

__all__ = ["LogGradientLoss", "SigLoss"]

EPSILON = 0.001  # keeps the logarithm's gradient bounded


def _valid(target: Tensor, max_depth: float | None) -> Tensor:
    return target > 0 if max_depth is None else (target > 0) & (target <= max_depth)


@MODELS.register_module()
class SigLoss(nn.Module):
    """Scale-invariant log loss: sqrt(var(g) + 0.15 · mean(g)²), g = log(pred + ε) - log(target + ε) over valid pixels.

    DINOv2, eval/depth/models/losses/sigloss.py, after AdaBins (arXiv 2011.14141). For the first ``warm_iter``
    iterations the variance is left out.

    The variance is not additive over images, so how many are pooled matters. DINOv2 pools one GPU's 2 images;
    ``images`` keeps that on any number of processes: the loss is the mean over groups of so many images. Groups without
    a valid pixel count as zero.

    Args:
        loss_weight: factor.
        max_depth: metres; deeper targets are invalid.
        warm_iter: iterations of warm-up, 0 for none.
        images: images whose pixels are pooled; None for the whole batch.
        loss_name: key in the log; has to begin with ``loss``.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        max_depth: float | None = None,
        warm_iter: int = 100,
        images: int | None = 2,
        loss_name: str = "loss_sig",
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.max_depth = max_depth
        self.warm_iter = warm_iter
        self.images = images
        self.loss_name = loss_name

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of ``prediction [B, 1, H, W]`` against ``target [B, 1, H, W]`` in metres, 0 = not measured."""
        # The run's own counter, so that a resumed run does not warm up again.
        warming = MessageHub.get_current_instance().get_info("iter", 0) < self.warm_iter
        groups = zip(
            prediction.split(self.images or len(target)), target.split(self.images or len(target)), strict=True
        )
        losses = [self._pooled(*group, warming) for group in groups]
        return self.loss_weight * torch.stack(losses).mean()

    def _pooled(self, prediction: Tensor, target: Tensor, warming: bool) -> Tensor:
        valid = _valid(target, self.max_depth)
        if not valid.any():
            return prediction.sum() * 0
        g = torch.log(prediction[valid] + EPSILON) - torch.log(target[valid] + EPSILON)
        loss = 0.15 * g.mean() ** 2
        if not warming and g.numel() > 1:
            loss = loss + g.var()
        # sqrt has no finite gradient at 0, where a perfect prediction lands.
        return torch.sqrt(loss.clamp(min=torch.finfo(loss.dtype).tiny))


@MODELS.register_module()
class LogGradientLoss(nn.Module):
    """Differences of g = log(pred + ε) - log(target + ε) over two pixels, at four scales, summed over valid pairs.

    DINOv2, eval/depth/models/losses/gradientloss.py, after MegaDepth, whose formula is for one ``[H, W]`` map. DINOv2's
    code receives ``[B, 1, H, W]`` and takes the first two axes for rows and columns: it differentiates over the batch,
    and with its 2 images per GPU the loss is exactly 0. ``axes="image"`` (default) is the formula, per image;
    ``axes="upstream"`` is what that code computes.

    Args:
        loss_weight: factor.
        max_depth: metres; deeper targets are invalid.
        axes: ``image`` or ``upstream``.
        loss_name: key in the log; has to begin with ``loss``.

    Raises:
        ValueError: unknown ``axes``.
    """

    def __init__(
        self,
        loss_weight: float = 0.5,
        max_depth: float | None = None,
        axes: str = "image",
        loss_name: str = "loss_grad",
    ) -> None:
        super().__init__()
        if axes not in ("image", "upstream"):
            raise ValueError(f"axes={axes!r}; use 'image' or 'upstream'")
        self.loss_weight = loss_weight
        self.max_depth = max_depth
        self.axes = axes
        self.loss_name = loss_name

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of ``prediction [B, 1, H, W]`` against ``target [B, 1, H, W]`` in metres, 0 = not measured."""
        if self.axes == "upstream":
            return self.loss_weight * self._scales(prediction, target)
        pairs = zip(prediction.flatten(0, 1), target.flatten(0, 1), strict=True)
        return self.loss_weight * torch.stack([self._scales(*pair) for pair in pairs]).mean()

    def _scales(self, prediction: Tensor, target: Tensor) -> Tensor:
        total = prediction.sum() * 0
        for step in (1, 2, 4, 6):
            total = total + self._gradients(prediction[::step, ::step], target[::step, ::step])
        return total

    def _gradients(self, prediction: Tensor, target: Tensor) -> Tensor:
        valid = _valid(target, self.max_depth)
        g = (torch.log(prediction + EPSILON) - torch.log(target + EPSILON)) * valid
        vertical = (g[:-2] - g[2:]).abs() * (valid[:-2] & valid[2:])
        horizontal = (g[:, :-2] - g[:, 2:]).abs() * (valid[:, :-2] & valid[:, 2:])
        return (vertical.sum() + horizontal.sum()) / valid.sum().clamp(min=1)
