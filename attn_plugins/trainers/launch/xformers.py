"""xformers' operators in plain PyTorch: its own have no CPU implementation, and DINOv2's trainer needs them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...attention import attention

__all__ = ["index_select_cat", "memory_efficient_attention", "replacements", "scaled_index_add"]


def replacements() -> list[tuple[Any, str, Any]]:
    """(owner, name, function) of what stands in for xformers' operators; empty without xformers."""
    if importlib.util.find_spec("xformers") is None:
        return []
    import xformers.ops

    functions = (index_select_cat, memory_efficient_attention, scaled_index_add)
    return [(xformers.ops, function.__name__, function) for function in functions]


def memory_efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Any = None, p: float = 0.0, scale: float | None = None
) -> Tensor:
    """query, key, value: [B, N, H, D] → [B, N, H, D]; attn_bias as xformers takes it, a BlockDiagonalMask included."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return attention(query, key, value, attn_mask=attn_bias, dropout_p=p, scale=scale).transpose(1, 2)


def index_select_cat(sources: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    """sources: [Nᵢ, Dᵢ] each, indices: [Mᵢ] each → the chosen rows, flattened and concatenated: [Σ Mᵢ·Dᵢ]."""
    return torch.cat([source[index].flatten() for source, index in zip(sources, indices, strict=True)])


def scaled_index_add(
    input: Tensor, index: Tensor, source: Tensor, scaling: Tensor | None = None, alpha: float = 1.0
) -> Tensor:
    """input: [B, N, D], index: [K] of B, source: [K, N, D], scaling: [D] → input with alpha·scaling·source added."""
    return torch.index_add(input, 0, index, source if scaling is None else source * scaling, alpha=alpha)
