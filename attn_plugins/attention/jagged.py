"""Jagged nested tensors: sequences of different lengths, which are computed one by one or as a packed batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["attention"]


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any, run: Callable[..., Tensor]) -> Tensor:
    """Attention within each sequence, with gradients; layouts are those of ``F.scaled_dot_product_attention``.

    Args:
        query: ``[B, H, j, D]`` of layout ``torch.jagged``, ragged in j (``x.transpose(1, 2)`` of ``[B, j, H, D]``).
        key: ``[B, H, k, D]``, as ``query``; each sequence may have another length there.
        value: ``[B, H, k, Dv]``.
        attn_mask: None.
        run: computes ``(query, key, value, attn_mask)`` of dense tensors ``[1, H, N, D]``, where the mask is None or
            a list of lengths.

    Returns:
        ``[B, H, j, Dv]`` of layout ``torch.jagged``.

    Raises:
        ValueError: another layout or other dimensions, dense tensors among nested ones, or a mask.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check(name, tensor)
    if attn_mask is not None:
        raise ValueError("nested tensors take no attn_mask, as in torch: their lengths are the mask; pass None")
    q, k, v = (_by_token(tensor) for tensor in (query, key, value))
    lengths, key_lengths, value_lengths = (t.offsets().diff().tolist() for t in (q, k, v))
    if len(lengths) != len(key_lengths) or key_lengths != value_lengths:
        raise ValueError(
            f"sequences of query, key and value do not fit together: lengths {lengths}, {key_lengths}, {value_lengths}"
        )
    flat = [t.values().transpose(0, 1).unsqueeze(0) for t in (q, k, v)]
    if lengths == key_lengths:
        out = run(*flat, lengths)
    else:
        parts = (flat[0].split(lengths, -2), flat[1].split(key_lengths, -2), flat[2].split(key_lengths, -2))
        out = torch.cat([run(*sequence, None) for sequence in zip(*parts, strict=True)], -2)
    rows = out.squeeze(0).transpose(0, 1).contiguous()
    return torch.nested.nested_tensor_from_jagged(rows, q.offsets()).transpose(1, 2)


def _by_token(tensor: Tensor) -> Any:  # torch's stubs know no offsets() and values() of a nested tensor
    """``[B, H, j, D]`` to ``[B, j, H, D]``."""
    return tensor.transpose(1, 2).contiguous()


def _check(name: str, tensor: Tensor) -> None:
    remedy = (
        "attention takes nested tensors [B, H, j, D] of layout torch.jagged that are ragged in j "
        "(x.transpose(1, 2) of [B, j, H, D]) for all of query, key and value; or dense ones with attn_mask"
    )
    if not tensor.is_nested:
        raise ValueError(f"{name} is a dense tensor {tuple(tensor.shape)} among nested ones; {remedy}")
    if tensor.layout is not torch.jagged:
        raise ValueError(f"{name} is a nested tensor of layout {tensor.layout}; {remedy}")
    if tensor.dim() != 4 or getattr(tensor, "_ragged_idx", None) != 2:
        raise ValueError(f"{name} has {tensor.dim()} dimensions and is not ragged in the third of four; {remedy}")
