"""softmax, sparsemax and the entmax family as functions of scores.

All of them map ``[..., n, ...]`` to weights of the same shape and dtype that sum to 1 along ``dim``:

* any ``dim``, memory layout and device; float16 and bfloat16 are solved in float32;
* a score of -inf (a mask) gets weight 0 and gradient 0, exactly; a row of nothing but -inf gives zeros;
* NaN or +inf makes its row NaN, and no other;
* differentiable twice, and usable under ``torch.func.vmap`` and ``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..registry import register_normalizer
from . import plain
from .autograd import Entmax, EntmaxPerRow

__all__ = ["entmax", "entmax15", "entmax_alpha", "softmax", "sparsemax"]


@register_normalizer("softmax", alpha=1.0)
def softmax(scores: Tensor, dim: int = -1) -> Tensor:
    """exp(z) / sum exp(z) along ``dim``: ``torch.softmax``, except that a row of -inf gives zeros.

    Args:
        scores: ``[..., n, ...]``, floating point.
        dim: the dimension that holds the n scores of a row.
    """
    masked = (scores == -torch.inf).all(dim, keepdim=True)
    return torch.softmax(scores.masked_fill(masked, 0), dim).masked_fill(masked, 0)


@register_normalizer("sparsemax", alpha=2.0)
def sparsemax(scores: Tensor, dim: int = -1) -> Tensor:
    """[z - tau]_+ with tau such that the sum is 1: the Euclidean projection onto the simplex.

    Martins & Astudillo 2016, arXiv 1602.02068, equation 3.

    Args:
        scores: ``[..., n, ...]``, floating point.
        dim: the dimension that holds the n scores of a row.

    Raises:
        ValueError: ``scores`` is not floating point.
    """
    return _along(dim, scores, 2.0)


@register_normalizer("entmax15", alpha=1.5)
def entmax15(scores: Tensor, dim: int = -1) -> Tensor:
    """[z/2 - tau]_+^2 with tau such that the sum is 1.

    Peters et al. 2019, arXiv 1905.05702, section 4. The paper that this project implements prints
    [(z - tau)/2]_+ without the square, which would be sparsemax of z/2; the method that it names and cites is
    this one.

    Args:
        scores: ``[..., n, ...]``, floating point.
        dim: the dimension that holds the n scores of a row.

    Raises:
        ValueError: ``scores`` is not floating point.
    """
    return _along(dim, scores, 1.5)


@register_normalizer("entmax", alpha="alpha")
def entmax(scores: Tensor, alpha: float = 1.5, dim: int = -1) -> Tensor:
    """[(alpha - 1) z - tau]_+^(1 / (alpha - 1)) with tau such that the sum is 1, for a fixed alpha >= 1.

    Peters et al. 2019, arXiv 1905.05702, equation 10. Larger alphas are sparser.

    Args:
        scores: ``[..., n, ...]``, floating point.
        alpha: 1 or more and finite; 1 is ``softmax``, the limit, 1.5 ``entmax15``, 2 ``sparsemax``.
        dim: the dimension that holds the n scores of a row.

    Raises:
        ValueError: alpha is not in [1, inf), or ``scores`` is not floating point.
    """
    if not (1 <= alpha < math.inf):
        raise ValueError(f"entmax needs a finite alpha of 1 (softmax) or more, got {alpha!r}")
    return softmax(scores, dim) if alpha == 1 else _along(dim, scores, float(alpha))


def entmax_alpha(scores: Tensor, alpha: Tensor, dim: int = -1) -> Tensor:
    """``entmax`` with a tensor of alphas, and a gradient to it.

    The gradient is exact, by implicit differentiation: Correia et al. 2019, arXiv 1909.00015, equation 9.

    Args:
        scores: ``[..., n, ...]``, floating point.
        alpha: values in (1, 2], not checked; broadcasts to ``scores`` with size 1 at ``dim``.
        dim: the dimension that holds the n scores of a row.

    Raises:
        ValueError: the shape of ``alpha`` does not fit, or ``scores`` is not floating point.
    """
    if not isinstance(scores, Tensor):  # a proxy of torch.fx, which tells no shape
        return plain.entmax(scores, alpha, dim)
    rank = max(scores.dim(), 1)
    alpha = alpha.reshape((1,) * (rank - alpha.dim()) + tuple(plain.sizes(alpha)))
    if alpha.dim() != rank or plain.sizes(alpha)[dim] != 1:
        raise ValueError(
            f"alpha of shape {tuple(alpha.shape)} does not give one value per row of scores "
            f"{tuple(scores.shape)} along dim {dim}; it needs size 1 there"
        )
    return _along(dim, scores, alpha)


def _along(dim: int, scores: Tensor, alpha: float | Tensor) -> Tensor:
    """Entmax along ``dim``, in float32 or better; ``alpha`` is a number, or broadcasts with size 1 at ``dim``."""
    if not isinstance(scores, Tensor):  # a proxy of torch.fx
        return plain.entmax(scores, alpha, dim)
    if not scores.is_floating_point():
        raise ValueError(f"scores are floating point, not {scores.dtype}; convert them with .float()")
    if scores.dim() == 0:
        return _along(0, scores.unsqueeze(0), alpha).squeeze(0)
    if plain.wanted():
        return plain.entmax(scores, alpha, dim)
    rows = (scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores).movedim(dim, -1)
    weights: Tensor
    if isinstance(alpha, float):
        weights = Entmax.apply(rows, alpha)
    else:
        weights = EntmaxPerRow.apply(rows, alpha.movedim(dim, -1).to(rows.dtype))
    return weights.movedim(-1, dim).to(scores.dtype)
