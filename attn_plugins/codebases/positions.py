"""The official DINO code's resampling of position embeddings: for architectures that timm built, and for exports."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OfficialPositions", "positions_by_tensors", "resampled", "restore_positions"]


class OfficialPositions:
    """Gives a timm ViT position embeddings resampled as DINOv1 and DINOv2 do, for any image size.

    timm resamples with antialiasing; the official code does not, and adds 0.1 to the wanted grid before it turns it
    into a scale factor (facebookresearch/dino issue 8). At another resolution than the training one the two differ
    by more than rounding. The models with registers are resampled with antialiasing and no offset.

    Args:
        model: timm VisionTransformer built with ``dynamic_img_size=False``; its ``pos_embed`` is ``[1, P + G², C]``.
        offset: what is added to the grid before the scale is taken (0.1, or 0 for the size itself).
        antialias: as in ``F.interpolate``.
    """

    def __init__(self, model: Any, offset: float = 0.1, antialias: bool = False) -> None:
        self.model = model
        self.offset = offset
        self.antialias = antialias
        self.original: Tensor = model.pos_embed.data
        self.grid: tuple[int, int] | None = None
        model.patch_embed.strict_img_size = False

    def prepare(self, images: Tensor) -> None:
        """Set the model's position embedding for ``images [B, 3, H, W]``."""
        patch = self.model.patch_embed.patch_size[0]
        h, w = (size // patch for size in images.shape[-2:])
        if (h, w) != self.grid:
            self.grid = (h, w)
            self.model.pos_embed = nn.Parameter(self._resampled(h, w).to(images.device), requires_grad=False)

    def restore(self) -> None:
        """Give the model the position embedding that it was trained with, if it has another now."""
        if self.grid is not None:
            self.grid = None
            self.model.pos_embed = nn.Parameter(self.original, requires_grad=False)

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


@contextmanager
def positions_by_tensors(model: Any) -> Iterator[None]:
    """Context in which a model with DINO's position embeddings resamples them by operations on tensors alone.

    So ``torch.export`` records a program for images of any size (``F.interpolate`` takes its factors as numbers, which
    a program would hold for one size), and gradients reach the embedding. Entered inside a forward; everything is as
    before after it. A model that resamples otherwise is left as it is.

    Args:
        model: the official DINOv1's or DINOv2's ViT, which has ``interpolate_pos_encoding(x, rows, columns)``, or one
            of timm that has ``OfficialPositions``.
    """
    official = getattr(model, "official_positions", None)
    if isinstance(official, OfficialPositions):
        official.restore()
        kept = model._parameters.pop("pos_embed")
        official.prepare = lambda images: _set_positions(official, kept, images)  # type: ignore[method-assign]
        try:
            yield
        finally:
            del official.prepare
            vars(model).pop("pos_embed", None)
            model._parameters["pos_embed"] = kept
    elif hasattr(model, "interpolate_pos_encoding") and isinstance(getattr(model, "pos_embed", None), nn.Parameter):
        offset, antialias = getattr(model, "interpolate_offset", 0.1), getattr(model, "interpolate_antialias", False)
        patch = _side(model.patch_embed.patch_size)

        def interpolate(x: Tensor, rows: int, columns: int) -> Tensor:
            grid = rows // patch, columns // patch
            return resampled(model.pos_embed.float(), *grid, offset or 0.0, antialias).to(x.dtype)

        model.interpolate_pos_encoding = interpolate
        try:
            yield
        finally:
            del model.interpolate_pos_encoding
    else:
        yield


def restore_positions(model: Any) -> None:
    """Give a model whose positions were resampled for images of one size those that it was trained with."""
    official = getattr(model, "official_positions", None)
    if isinstance(official, OfficialPositions):
        official.restore()


def _set_positions(official: OfficialPositions, tokens: Tensor, images: Tensor) -> None:
    patch = _side(official.model.patch_embed.patch_size)
    h, w = (size // patch for size in images.shape[-2:])
    official.model.pos_embed = resampled(tokens, h, w, official.offset, official.antialias)


def _side(patch_size: Any) -> int:
    return int(patch_size[0]) if isinstance(patch_size, tuple | list) else int(patch_size)


def resampled(tokens: Tensor, h: int, w: int, offset: float, antialias: bool) -> Tensor:
    """Position embeddings on another grid, as DINO's code and ``F.interpolate`` compute them, by two matrix products.

    Args:
        tokens: ``[1, P + G², C]``.
        h: rows of the new grid; a number, or a symbol of an export.
        w: columns.
        offset: what is added to the grid before the scale is taken, 0.1 or 0.
        antialias: as in ``F.interpolate``.

    Returns:
        ``[1, P + h·w, C]``; for h = w = G, ``tokens``.
    """
    side = math.isqrt(tokens.shape[1])
    prefix = tokens.shape[1] - side * side
    grid = tokens[0, prefix:].unflatten(0, (side, side))
    rows, columns = (torch.arange(size, device=tokens.device, dtype=tokens.dtype) for size in (h, w))
    same = (rows[-1] == side - 1) & (columns[-1] == side - 1)
    weigh = _antialiased if antialias else _bicubic
    down, across = (_unless(same, weigh(places, side, offset)) for places in (rows, columns))
    patches = torch.einsum("yi,xj,ijc->yxc", down, across, grid)
    return torch.cat([tokens[:, :prefix], patches.flatten(0, 1)[None]], dim=1)


def _unless(same: Tensor, matrix: Tensor) -> Tensor:
    """``matrix [to, from]``; the identity where ``same`` is true."""
    places = torch.arange(matrix.shape[0], device=matrix.device)[:, None]
    kept = (places == torch.arange(matrix.shape[1], device=matrix.device)).to(matrix.dtype)
    return torch.where(same, kept, matrix)


def _bicubic(places: Tensor, side: int, offset: float) -> Tensor:
    """Weights ``[to, from]`` of bicubic resampling, A = -0.75, borders repeated, as torch computes it."""
    scale = side / (places[-1] + 1 + offset)
    source = scale * (places + 0.5) - 0.5
    low = source.floor()
    taps = torch.arange(-1, 3, device=places.device, dtype=places.dtype)
    weights = _cubic(source[:, None] - low[:, None] - taps, -0.75)
    reached = (low[:, None] + taps).clamp(0, side - 1)
    every = torch.arange(side, device=places.device, dtype=places.dtype)
    return ((reached[:, :, None] == every) * weights[:, :, None]).sum(1)


def _antialiased(places: Tensor, side: int, offset: float) -> Tensor:
    """Weights ``[to, from]`` of bicubic resampling with antialiasing, A = -0.5, as Pillow and torch compute it."""
    scale = side / (places[-1] + 1 + offset)
    wide = scale.clamp(min=1)
    centre = (scale * (places + 0.5))[:, None]
    every = torch.arange(side, device=places.device, dtype=places.dtype)
    inside = (every >= (centre - 2 * wide + 0.5).trunc()) & (every < (centre + 2 * wide + 0.5).trunc())
    weights = torch.where(inside, _cubic((every - centre + 0.5) / wide, -0.5), 0)
    return weights / weights.sum(1, keepdim=True)


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys' kernel at x."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0))
