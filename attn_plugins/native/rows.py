"""``rows.c``: kernels for rows of float32 scores on a CPU."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from . import build

__all__ = ["backward", "forward"]


def forward(scores: Tensor, alpha: float) -> Tensor:
    """Weights of ``scores`` ``[..., n]``, contiguous."""
    scores = scores.contiguous()
    weights = torch.empty_like(scores)
    _call("rows_forward", [scores, weights], alpha)
    return weights


def backward(weights: Tensor, grad: Tensor, alpha: float) -> Tensor:
    """Gradient of the scores from ``weights`` and their ``grad``, all ``[..., n]``."""
    weights, grad = weights.contiguous(), grad.contiguous()
    out = torch.empty_like(weights)
    _call("rows_backward", [weights, grad, out], alpha)
    return out


def _call(name: str, tensors: list[Tensor], alpha: float) -> None:
    n = tensors[0].shape[-1]
    rows = tensors[0].numel() // n
    if _function(name)(*(t.data_ptr() for t in tensors), rows, n, alpha, torch.get_num_threads()):
        raise MemoryError(f"no memory for {torch.get_num_threads()} threads' tiles of {n} scores each")


@functools.cache
def _function(name: str) -> Any:
    function = getattr(build.load(), name)
    pointers = 2 if name == "rows_forward" else 3
    function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64, ctypes.c_int64, ctypes.c_float, ctypes.c_int]
    return function
