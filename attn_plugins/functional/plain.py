"""Entmax in plain torch operations, the same ones whatever the scores are: what exported programs are made of.

With x = (alpha - 1)(z - max z), the weights are ``[x_i - tau]_+ ^ (1 / (alpha - 1))``. The threshold tau is found
by sorting for alpha = 1.5 and 2 (Peters et al. 2019, arXiv 1905.05702, algorithm 2), and otherwise by a fixed number
of halvings of [-1, 0]. Two Newton steps follow. They take what rounding has left, and through them alone gradients
flow: where g(tau) = 0 the derivative of a Newton step is the implicit function's, ``-g_x / g_tau``, and that of
two steps is right to the third order. So this is differentiable in forward mode and repeatedly, unlike the kernels.

In float32 it differs from the ``entmax`` package by less than 1e-5.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..torch_names import exporting, exporting_to_onnx, forward_mode, untraced_shape
from .solver import takes_alpha

__all__ = ["asked", "computed", "entmax", "sizes", "wanted"]

HALVINGS = {torch.float32: 24, torch.float64: 52}
"""Of an interval of length 1, until it is as long as the threshold's last digit."""

LOWEST = -1e30
"""Score below the highest that has no weight for any alpha; finite, since gradients turn infinity into NaN."""


# --- when


class _Asked:
    """How many contexts ask for plain operations; of the process, since torch.compile guards on nothing less."""

    depth = 0
    lock = threading.Lock()


@contextlib.contextmanager
def computed() -> Iterator[None]:
    """Inside, ``wanted`` is true."""
    with _Asked.lock:
        _Asked.depth += 1
    try:
        yield
    finally:
        with _Asked.lock:
            _Asked.depth -= 1


def asked() -> bool:
    """Whether this runs inside ``computed``."""
    return _Asked.depth > 0


def wanted() -> bool:
    """Whether to use plain operations: they were asked for, or the kernels cannot be recorded or differentiated."""
    if asked():
        return True
    if torch.compiler.is_compiling():
        return exporting() and exporting_to_onnx()
    return torch.jit.is_tracing() or forward_mode()


def sizes(tensor: Tensor) -> Sequence[int]:
    """The shape of ``tensor`` as numbers, also inside ``torch.jit.trace``, which has tensors for them."""
    if torch.compiler.is_compiling() or not torch.jit.is_tracing():
        return tensor.shape
    return untraced_shape(tensor)


# --- how


def entmax(scores: Tensor, alpha: float | Tensor, dim: int = -1) -> Tensor:
    """Entmax weights along ``dim``; no shape, dtype or value is asked for, so ``torch.fx`` can trace it.

    Args:
        scores: ``[..., n, ...]``, floating point, n >= 1. -inf is masked; a row of nothing else gives zeros.
        alpha: > 1; or a tensor in (1, 2] that broadcasts to ``scores`` with size 1 at ``dim``.
        dim: the dimension that holds the n scores of a row.

    Returns:
        ``[..., n, ...]``; a row with NaN or +inf is NaN throughout, as in ``torch.softmax``.
    """
    rows = _wide(scores).movedim(dim, -1)
    if isinstance(alpha, float):
        rows = rows if takes_alpha(alpha) else rows.double()
    else:
        alpha = _wide(alpha).movedim(dim, -1)
    top = rows.amax(-1, keepdim=True)
    x = (rows - top.masked_fill(top == -torch.inf, 0)).clamp(min=LOWEST) * (alpha - 1)
    threshold = _threshold(x.detach(), alpha)
    for _ in range(2):
        threshold = threshold + _newton_step(x, threshold, alpha)
    weights = _powers(x, threshold, alpha)[0]
    if isinstance(alpha, float) and alpha > 2:  # (1e-16)^p is 1e-8 for alpha = 3: rounding shows in small weights
        total = weights.sum(-1, keepdim=True)
        weights = weights / total.masked_fill(total == 0, 1)
    return weights.movedim(-1, dim).type_as(scores)


def _wide(tensor: Tensor) -> Tensor:
    """In float32 or better."""
    if not isinstance(tensor, Tensor):  # a proxy of torch.fx, whose dtype is not known: the wider of both
        return tensor + tensor.new_zeros(1, dtype=torch.float32)
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _threshold(x: Tensor, alpha: float | Tensor) -> Tensor:
    """``[..., 1]``, to the last digits but a few."""
    if isinstance(alpha, float) and alpha in (1.5, 2.0):
        return _sorted_threshold(x.clamp(min=-1), alpha)
    exponent = alpha if isinstance(alpha, float) else alpha.detach()
    known = isinstance(alpha, float) and not takes_alpha(alpha)  # a proxy has no dtype, but that is float64
    halvings = HALVINGS[torch.float64 if known else x.dtype if isinstance(x, Tensor) else torch.float32]
    threshold, width = torch.full_like(x[..., :1], -1), 1.0
    for _ in range(halvings):
        width /= 2
        total = _powers(x, threshold + width, exponent)[0].sum(-1, keepdim=True)
        threshold = torch.where(total < 1, threshold, threshold + width)
    return threshold


def _sorted_threshold(x: Tensor, alpha: float) -> Tensor:
    x = x.sort(dim=-1, descending=True)[0]
    count = torch.ones_like(x).cumsum(-1)
    if alpha == 2.0:
        thresholds = (x.cumsum(-1) - 1) / count
    else:
        mean = x.cumsum(-1) / count
        spread = (x * x).cumsum(-1) / count - mean * mean
        thresholds = mean - (1 / count - spread).clamp(min=0).sqrt()
    support = (thresholds <= x).sum(-1, keepdim=True).clamp(min=1)
    return thresholds.gather(-1, support - 1)


def _powers(x: Tensor, threshold: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """``[x - threshold]_+`` to the power of p = 1 / (alpha - 1), and of p - 1."""
    outside = x <= threshold  # of NaN this is false, so that it shows
    excess = torch.where(outside, 1, x - threshold)
    exponent = 1 / (alpha - 1) - 1
    slopes = excess if isinstance(exponent, float) and exponent == 1 else excess**exponent
    slopes = torch.where(outside, 0, slopes)
    return excess * slopes, slopes


def _newton_step(x: Tensor, threshold: Tensor, alpha: float | Tensor) -> Tensor:
    """Newton's step for ``norm - 1``, the p-norm of the excess; 0 where every score is masked."""
    weights, slopes = _powers(x, threshold, alpha)
    total, total_slope = weights.sum(-1, keepdim=True), slopes.sum(-1, keepdim=True)
    masked = total == 0
    total, total_slope = torch.where(masked, 1, total), torch.where(masked, 1, total_slope)
    norm = total ** (alpha - 1)
    step: Any = (norm - 1) * total / (norm * total_slope)
    return torch.where(masked, 0, step)
