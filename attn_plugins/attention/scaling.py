"""A normalizer's factor on the scores, moved in front of the kernels: into their scale, or into the query."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functional import Normalizer
from ..functional.scale import ScoreScale

__all__ = ["unscaled"]

Arguments = tuple[Callable[..., Tensor], Tensor, float, Any]


def unscaled(
    normalizer: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    scale: float,
    mask: Any,
    lengths: tuple[int, ...] | None = None,
    is_causal: Any = False,
) -> Arguments:
    """``(normalizer, query, scale, mask)`` without a factor, that compute the same.

    Args:
        normalizer: with a factor or without.
        query: ``[..., H, N, D]``.
        key: ``[..., H, S, D]``.
        scale: factor on the scores already.
        mask: dense: bool, or float, which is a part of the scores and multiplied too; or None.
        lengths: of a packed batch.
        is_causal: query i sees keys 0..i.
    """
    if isinstance(normalizer, Normalizer) and normalizer.inner is not None:
        return normalizer.inner, query, scale * normalizer.scale, _times(mask, normalizer.scale)
    if not isinstance(normalizer, ScoreScale):
        return normalizer, query, scale, mask
    factor = normalizer.factor(query, functools.partial(_keys, query, key, mask, lengths, is_causal))
    if isinstance(factor, float):
        return normalizer.inner, query, scale * factor, _times(mask, factor)
    return normalizer.inner, query * factor, scale, _times(mask, factor)


def _times(mask: Any, factor: float | Tensor) -> Any:
    if not isinstance(mask, Tensor) or mask.dtype == torch.bool:
        return mask
    return mask * (factor.to(mask.dtype) if isinstance(factor, Tensor) else factor)


def _keys(query: Tensor, key: Tensor, mask: Any, lengths: tuple[int, ...] | None, is_causal: Any) -> Tensor:
    """How many keys every query sees; broadcasts to ``[..., H, N, 1]``."""
    if lengths is not None:
        counts = torch.tensor(lengths, device=query.device)
        return counts.repeat_interleave(counts).unsqueeze(-1)
    if isinstance(mask, Tensor):
        seen = mask if mask.dtype == torch.bool else mask > -torch.inf
        return seen.expand(*seen.shape[:-1], key.shape[-2]).sum(-1, keepdim=True)
    if is_causal is True:
        return torch.arange(1, query.shape[-2] + 1, device=query.device).clamp(max=key.shape[-2]).unsqueeze(-1)
    return torch.full((1, 1), key.shape[-2], device=query.device)
