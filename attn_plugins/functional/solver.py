"""Rows of scores to entmax weights in plain torch: any device, float32 and float64, the kernels' reference.

With x = (alpha - 1)(z - max z) and p = 1 / (alpha - 1), the weights are ``[x_i - tau]_+ ^ p``, where tau in [-1, 0) is
the root of ``g(tau) = || [x - tau]_+ ||_p - 1`` (Peters et al. 2019, arXiv 1905.05702).

For alpha <= 2, p >= 1 and g is convex and decreasing, so Newton from tau = -1, where g >= 0, climbs to the root
and never passes it. For sparsemax this is Michelot's projection; for entmax-1.5 it is exact as soon as all scores
of the support are equal. How many steps at most: convexity gives, for one step from tau to tau',
``g(tau') / g(tau) + g'(tau') / g'(tau) <= 1``, so the product g |g'| falls to a quarter or less. It starts at
``n^(2/p)`` or below, and |g'| >= 1 throughout, so after k steps ``g <= 4^-k n^(2/p)``: 26 steps reach float64's
resolution from n = 1 (46 from n = 10^6, sparsemax). Rows of real scores take four to eight.

For alpha > 2, g is not convex; Newton is kept inside a bracket that shrinks by bisection when it must.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["FLOAT32_ALPHAS", "alpha_gradient", "pull_back", "slope", "solve", "takes_alpha", "weighted_mean"]

FLOAT32_ALPHAS = (1.05, 2.0)
"""Where float32 has the digits: below, the power 1 / (alpha - 1) magnifies rounding, and so does a power below 1."""


def takes_alpha(alpha: float) -> bool:
    """Whether a float32 kernel may solve for ``alpha``; other alphas are solved in float64."""
    return FLOAT32_ALPHAS[0] <= alpha <= FLOAT32_ALPHAS[1]


def solve(scores: Tensor, alpha: float | Tensor) -> Tensor:
    """Entmax weights along the last dimension.

    Args:
        scores: ``[..., n]``, float32 or float64, n >= 1. -inf is masked; a row of nothing else gives zeros.
        alpha: > 1; or a tensor in (1, 2] that broadcasts to ``[..., 1]``.

    Returns:
        ``[..., n]``; a row with NaN or +inf is NaN throughout, as in ``torch.softmax``.
    """
    if isinstance(alpha, float) and not takes_alpha(alpha) and scores.dtype != torch.float64:
        return solve(scores.double(), alpha).to(scores.dtype)
    top = scores.amax(-1, keepdim=True)
    x = (scores - top.masked_fill(top == -torch.inf, 0)) * (alpha - 1)
    if isinstance(alpha, float) and alpha > 2:
        weights = _power(_excess(x, _bracketed_threshold(x, alpha)), 1 / (alpha - 1))
        # Weights near 0 magnify the rounding of the threshold: (1e-16)^p is 1e-8 for alpha = 3.
        total = weights.sum(-1, keepdim=True)
        return weights / total.masked_fill(total == 0, 1)
    threshold = torch.full_like(top, -1)
    for _ in range(_step_bound(x, alpha)):
        step, _norm = _newton_step(_excess(x, threshold), alpha)
        threshold = threshold + step
        # Elsewhere, asking would wait for the device; there the bound alone ends the loop.
        if x.device.type == "cpu" and not (step > torch.finfo(x.dtype).eps * threshold.abs()).any():
            break
    excess = _excess(x, threshold)
    return excess * _power(excess, 1 / (alpha - 1) - 1)


def slope(weights: Tensor, alpha: float | Tensor) -> Tensor:
    """``weights ** (2 - alpha)``, 0 where a weight is 0: the diagonal of the Jacobian, up to its rank-one part."""
    if isinstance(alpha, float) and alpha == 2.0:
        return torch.where(weights > 0, 1, weights)
    inside = weights != 0  # NaN included, so that it shows
    return torch.where(inside, torch.where(inside, weights, 1) ** (2 - alpha), 0)


def weighted_mean(slopes: Tensor, grad: Tensor) -> Tensor:
    """Mean of ``grad`` weighted by ``slopes`` along the last dimension, 0 where all are 0."""
    total = slopes.sum(-1, keepdim=True)
    return (slopes * grad.masked_fill(slopes == 0, 0)).sum(-1, keepdim=True) / total.masked_fill(total == 0, 1)


def pull_back(slopes: Tensor, grad: Tensor, mean: Tensor) -> Tensor:
    """Gradient of the scores from the weights' ``grad``: ``slopes * (grad - mean)``, 0 where a slope is 0."""
    return torch.where(slopes != 0, slopes * (grad - mean), 0)


def alpha_gradient(weights: Tensor, grad: Tensor, mean: Tensor, alpha: Tensor) -> Tensor:
    """Gradient of alpha for every row, by implicit differentiation (Correia et al. 2019, arXiv 1909.00015, eq. 9).

    Args:
        weights: ``[..., n]``.
        grad: ``[..., n]``, the weights' gradient.
        mean: ``[..., 1]``, ``weighted_mean(slope(weights, alpha), grad)``.
        alpha: broadcasts to ``[..., 1]``.

    Returns:
        ``[..., 1]``.
    """
    inside = weights != 0
    entropy = -weights * torch.where(inside, weights, 1).log()
    grad = grad.masked_fill(~inside, 0)
    first = (grad * weights).sum(-1, keepdim=True) - mean * weights.sum(-1, keepdim=True)
    second = (grad * entropy).sum(-1, keepdim=True) - mean * entropy.sum(-1, keepdim=True)
    return first / (alpha - 1) ** 2 + second / (alpha - 1)


def _excess(x: Tensor, threshold: Tensor) -> Tensor:
    return (x - threshold).clamp(min=0)


def _power(excess: Tensor, exponent: float | Tensor) -> Tensor:
    """``excess ** exponent``, 0 where there is no excess even if the exponent is 0 or negative."""
    if isinstance(exponent, float) and exponent == 1.0:
        return excess
    inside = excess != 0
    return torch.where(inside, torch.where(inside, excess, 1) ** exponent, 0)


def _newton_step(excess: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """Newton's step for g, and the norm it was made from, both ``[..., 1]``."""
    slopes = _power(excess, 1 / (alpha - 1) - 1)
    total, total_slope = (slopes * excess).sum(-1, keepdim=True), slopes.sum(-1, keepdim=True)
    masked = total == 0
    norm = total ** (alpha - 1)
    step = (norm - 1) * total / (norm * total_slope).masked_fill(masked, 1)
    return step.masked_fill(masked, 0), norm


def _step_bound(x: Tensor, alpha: float | Tensor) -> int:
    share = 2 * (alpha - 1) if isinstance(alpha, float) else 2.0
    return math.ceil((share * math.log(x.shape[-1]) - math.log(torch.finfo(x.dtype).eps)) / math.log(4))


def _bracketed_threshold(x: Tensor, alpha: float) -> Tensor:
    """Root of g for alpha > 2."""
    low = torch.full_like(x[..., :1], -1)
    high = torch.full_like(low, -(x.shape[-1] ** (1 - alpha)))  # the largest weight is 1/n or more
    threshold = low
    for step_number in range(150):
        step, norm = _newton_step(_excess(x, threshold), alpha)
        low = torch.where(norm >= 1, threshold, low)
        high = torch.where(norm < 1, threshold, high)
        newton, middle = threshold + step, (low + high) / 2
        # Every third step halves, so 150 steps leave less than 2^-50 of the bracket whatever Newton does.
        usable = (newton > low) & (newton < high) & (step_number % 3 != 2)
        moved = torch.where(usable, newton, middle)
        if x.device.type == "cpu" and not ((moved - threshold).abs() > torch.finfo(x.dtype).eps * moved.abs()).any():
            return moved
        threshold = moved
    return threshold
