"""Packed batches: several sequences in one row of tokens, attending only within themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from .call import AttentionCall

__all__ = ["run_packed"]


def run_packed(call: AttentionCall, run: Callable[[AttentionCall], Tensor]) -> Tensor:
    """Attention of a block-diagonal batch, one call per run of equally long sequences.

    Cross-sequence scores are never computed. DINOv2's nested batch (global crops, then local crops) is two runs.

    Args:
        call: query, key ``[B, H, N, D]``, value ``[B, H, N, Dv]`` and ``lengths`` that sum to N.
        run: what computes one dense batch.

    Returns:
        ``[B, H, N, Dv]``.
    """
    assert call.lengths is not None
    outputs, start = [], 0
    for length, group in groupby(call.lengths):
        count = len(list(group))
        stop = start + count * length
        if stop > start:
            q, k, v = (_unpack(t[..., start:stop, :], count) for t in (call.query, call.key, call.value))
            out = run(replace(call, query=q, key=k, value=v, lengths=None))
            outputs.append(out.transpose(-4, -3).flatten(-3, -2))
        start = stop
    return torch.cat(outputs, dim=-2) if outputs else call.value.clone()


def _unpack(tokens: Tensor, count: int) -> Tensor:
    """``[B, H, R*L, D]`` to ``[B, R, H, L, D]``."""
    rows: Tensor = tokens.unflatten(-2, (count, -1))
    return rows.transpose(-4, -3)
