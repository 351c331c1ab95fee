"""A normalizer's factor on the scores, moved in front of the kernels: into their scale, or into the query."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..functional import Normalizer
from ..functional.scale import ScoreScale
from .call import AttentionCall

__all__ = ["unscaled"]


def unscaled(call: AttentionCall) -> AttentionCall:
    """A call without a factor in its normalizer, that computes the same; a float mask is a part of the scores."""
    normalizer = call.normalizer
    inner: Any
    factor: Tensor | float
    if isinstance(normalizer, Normalizer):
        inner, factor = normalizer.inner, normalizer.scale
    elif isinstance(normalizer, ScoreScale):
        inner, factor = normalizer.inner, normalizer.factor(call)
    else:
        return call
    if inner is None:
        return call
    mask = _times(call.attn_mask, factor)
    if isinstance(factor, float):
        return replace(call, normalizer=inner, scale=call.scale * factor, attn_mask=mask)
    return replace(call, normalizer=inner, query=call.query * factor, attn_mask=mask)


def _times(mask: Any, factor: float | Tensor) -> Any:
    if not isinstance(mask, Tensor) or mask.dtype == torch.bool:
        return mask
    return mask * (factor.to(mask.dtype) if isinstance(factor, Tensor) else factor)
