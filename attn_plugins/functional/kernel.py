"""The C kernels for rows of float32 scores on a CPU (``native/rows.c``)."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from .. import native
from .solver import takes_alpha

__all__ = ["backward", "forward", "usable"]


def usable(tensor: Tensor, alpha: float) -> bool:
    """Whether the kernels take rows of ``tensor``: float32 on a CPU, and there was a compiler to build them."""
    fits = tensor.device.type == "cpu" and tensor.dtype == torch.float32 and takes_alpha(alpha)
    return fits and native.unavailable() is None


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
    function = getattr(native.load(), name)
    pointers = 2 if name == "rows_forward" else 3
    function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64, ctypes.c_int64, ctypes.c_float, ctypes.c_int]
    return function
