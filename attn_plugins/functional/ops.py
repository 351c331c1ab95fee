"""Entmax as torch operators: what ``torch.compile`` sees instead of a loop whose length depends on the data."""

from typing import Any

import torch
from torch import Tensor

from .. import native
from ..native import rows
from ..torch_names import register_vmap
from .solver import pull_back, slope, solve, takes_alpha, weighted_mean

__all__ = ["entmax", "entmax_alpha", "entmax_backward"]


# torch reads the operators' schemas from these annotations, before 2.5 only from types: no postponed evaluation here.
@torch.library.custom_op("attn_plugins::entmax", mutates_args=())
def entmax(scores: Tensor, alpha: float) -> Tensor:
    """Weights of ``scores`` ``[..., n]`` along the last dimension, contiguous."""
    if scores.numel() == 0:
        return torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    return rows.forward(scores, alpha) if _compiled(scores, alpha) else solve(scores, alpha).contiguous()


@torch.library.custom_op("attn_plugins::entmax_backward", mutates_args=())
def entmax_backward(weights: Tensor, grad: Tensor, alpha: float) -> Tensor:
    """The scores' gradient from the weights' ``grad``, both ``[..., n]``: s (g - mean_s g) with s = p^(2 - alpha)."""
    if weights.numel() == 0:
        return torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    if _compiled(weights, alpha):
        return rows.backward(weights, grad, alpha)
    slopes = slope(weights, alpha)
    return pull_back(slopes, grad, weighted_mean(slopes, grad)).contiguous()


def _compiled(tensor: Tensor, alpha: float) -> bool:
    """Whether the C kernels take rows of ``tensor``: float32 on a CPU, and there was a compiler to build them."""
    fits = tensor.device.type == "cpu" and tensor.dtype == torch.float32 and takes_alpha(alpha)
    return fits and native.unavailable() is None


@torch.library.custom_op("attn_plugins::entmax_alpha", mutates_args=())
def entmax_alpha(scores: Tensor, alpha: Tensor) -> Tensor:
    """As ``entmax`` with ``alpha`` in (1, 2] that broadcasts to ``[..., 1]``."""
    if scores.numel() == 0:
        return torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    return solve(scores, alpha).contiguous()


@entmax.register_fake
@entmax_backward.register_fake
@entmax_alpha.register_fake
def _like_first(first: Tensor, *_: Any) -> Tensor:
    return torch.empty(first.shape, dtype=first.dtype, device=first.device)


def _batch_first(info: Any, dim: int | None, tensor: Tensor, rank: int) -> Tensor:
    """The batch dimension in front and ``rank`` dimensions behind it, as broadcasting needs them."""
    tensor = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
    return tensor.reshape(tensor.shape[0], *[1] * (rank + 1 - tensor.dim()), *tensor.shape[1:])


@register_vmap(entmax)
def _(info: Any, in_dims: tuple[int | None, ...], scores: Tensor, alpha: float) -> tuple[Tensor, int]:
    assert in_dims[0] is not None
    return entmax(scores.movedim(in_dims[0], 0), alpha), 0


@register_vmap(entmax_backward)
def _(info: Any, in_dims: tuple[int | None, ...], weights: Tensor, grad: Tensor, alpha: float) -> tuple[Tensor, int]:
    rank = max(t.dim() - (d is not None) for t, d in zip((weights, grad), in_dims, strict=False))
    both = (_batch_first(info, d, t, rank) for t, d in zip((weights, grad), in_dims, strict=False))
    return entmax_backward(*torch.broadcast_tensors(*both), alpha), 0


@register_vmap(entmax_alpha)
def _(info: Any, in_dims: tuple[int | None, ...], scores: Tensor, alpha: Tensor) -> tuple[Tensor, int]:
    rank = scores.dim() - (in_dims[0] is not None)
    scores, alpha = (_batch_first(info, d, t, rank) for t, d in zip((scores, alpha), in_dims, strict=True))
    return entmax_alpha(scores.expand(info.batch_size, *scores.shape[1:]), alpha), 0
