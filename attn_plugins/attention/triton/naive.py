"""The kernels' search for the threshold in plain torch, on scores that are there: to read, and to test against.

It is the same algorithm in the same order (``rows``, ``forward``), and also counts what the kernels do not
report: the evaluations that the search took.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["first_pass", "search"]


def _sums(x: Tensor, tau: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """``sum_j s_j^power`` and ``sum_j s_j^(power - 1)`` over the support; x: ``[M, N]``, tau: ``[M]``."""
    s = (x - tau[:, None]).clamp(min=0)
    slope = torch.where(s > 0, s ** (power - 1), 0)
    return (s * slope).sum(1), slope.sum(1)


def _step(total: Tensor, steepness: Tensor, power: float) -> Tensor:
    """Newton's step on ``phi(tau) = total^(1/power) - 1``."""
    norm = total ** (1 / power)
    return (norm - 1) * (total / norm) / steepness


def first_pass(x: Tensor, alpha: float, block: int) -> Tensor:
    """A lower bound of tau from one look at each block of keys.

    What earlier blocks contribute at a higher tau is bounded from below by the tangent of their norm, so Newton's
    step on the sum of tangent and new block does not pass the root.

    Args:
        x: ``[M, N]`` scores times alpha - 1, finite.
        alpha: in (1, 2].
        block: keys that are looked at together; the last ones come first, as in the kernel.

    Returns:
        ``[M]``.
    """
    power = 1 / (alpha - 1)
    tail = (x.shape[1] - 1) // block * block
    top = x[:, tail:].amax(1)
    tau = top - 1
    total, steepness = _sums(x[:, tail:], tau, power)
    for first in range(0, tail, block):
        seen = x[:, first : first + block]
        top = torch.maximum(top, seen.amax(1))
        climbed = torch.maximum(tau + _step(total, steepness, power).nan_to_num(0).clamp(min=0), top - 1)
        shrink = (1 - (climbed - tau) * (steepness / total).nan_to_num(0)).clamp(min=0)
        tau = climbed
        more, steeper = _sums(seen, tau, power)
        total = total * shrink**power + more
        steepness = torch.where(shrink > 0, steepness * shrink ** (power - 1), 0) + steeper
    return tau + _step(total, steepness, power).clamp(min=0)


def search(x: Tensor, tau: Tensor, alpha: float, tolerance: float, most: int = 32) -> tuple[Tensor, int]:
    """Newton's method with inverse Hermite interpolation from ``tau`` on, for all rows together.

    Args:
        x: ``[M, N]`` scores times alpha - 1, finite.
        tau: ``[M]``; any value below the row's maximum, ``max - 1`` or ``first_pass``.
        alpha: in (1, 2].
        tolerance: of ``sum p``.
        most: evaluations.

    Returns:
        tau ``[M]``, and the evaluations that it took.
    """
    power, top = 1 / (alpha - 1), x.amax(1)
    tau0, norm0, inverse0 = tau, torch.zeros_like(tau), torch.zeros_like(tau)
    evaluations, open_rows = 0, True
    while open_rows and evaluations < most:
        evaluations += 1
        total, steepness = _sums(x, tau, power)
        norm = total ** (1 / power)
        inverse = -(total / norm) / steepness
        newton = tau - (norm - 1) * inverse
        rise = norm - norm0
        usable = (norm0 > 0) & (rise.abs() > 1e-4)
        u = (1 - norm0) / torch.where(usable, rise, 1)
        v = 1 - u
        hermite = tau + v * v * (1 + 2 * u) * (tau0 - tau) + u * v * rise * (v * inverse0 - u * inverse)
        better = torch.where(usable & (hermite > newton) & (hermite < top), hermite, newton)
        gap = torch.where(usable, (hermite - newton).abs(), torch.inf)
        error = torch.minimum(power * steepness * gap, (total - 1).abs())
        error[(better - tau).abs() <= 2.4e-7 * tau.abs()] = 0
        tau0, norm0, inverse0, tau = tau, norm, inverse, better
        open_rows = bool((error > tolerance).any())
    return tau, evaluations
