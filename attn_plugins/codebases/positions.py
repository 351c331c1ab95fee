"""The official DINO code's resampling of position embeddings, for the same architecture built by timm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OfficialPositions"]


class OfficialPositions:
    """Gives a timm ViT position embeddings resampled as DINOv1 and DINOv2 do, for any image size.

    timm resamples with antialiasing; the official code does not, and adds 0.1 to the wanted grid before it turns it
    into a scale factor (facebookresearch/dino issue 8). At another resolution than the training one the two differ
    by more than rounding. The models with registers are resampled with antialiasing and no offset.

    Args:
        model: timm VisionTransformer built with `dynamic_img_size=False`; its `pos_embed` is `[1, P + G², C]`.
        offset: what is added to the grid before the scale is taken (0.1, or 0 for the size itself).
        antialias: as in `F.interpolate`.
    """

    def __init__(self, model: Any, offset: float = 0.1, antialias: bool = False) -> None:
        self.model = model
        self.offset = offset
        self.antialias = antialias
        self.original: Tensor = model.pos_embed.data
        self.grid: tuple[int, int] | None = None
        model.patch_embed.strict_img_size = False

    def prepare(self, images: Tensor) -> None:
        """Set the model's position embedding for `images [B, 3, H, W]`."""
        patch = self.model.patch_embed.patch_size[0]
        h, w = (size // patch for size in images.shape[-2:])
        if (h, w) != self.grid:
            self.grid = (h, w)
            self.model.pos_embed = nn.Parameter(self._resampled(h, w).to(images.device), requires_grad=False)

    def _resampled(self, h: int, w: int) -> Tensor:
        tokens = self.original
        side = math.isqrt(tokens.shape[1])  # a prefix of one token never changes the integer root
        prefix = tokens.shape[1] - side * side
        if (h, w) == (side, side):
            return tokens
        grid = tokens[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if self.offset:
            scale = ((h + self.offset) / side, (w + self.offset) / side)
            grid = nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=self.antialias)
        else:
            grid = nn.functional.interpolate(grid, size=(h, w), mode="bicubic", antialias=self.antialias)
        if grid.shape[-2:] != (h, w):
            raise ValueError(f"positions of a {side}x{side} grid resampled to {tuple(grid.shape[-2:])}, not {(h, w)}")
        return torch.cat([tokens[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)
