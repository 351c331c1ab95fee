"""The gradients of ``ops``: differentiable again, and usable under ``torch.func``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .solver import alpha_gradient, pull_back, slope, weighted_mean

__all__ = ["Entmax", "EntmaxPerRow"]


class Entmax(torch.autograd.Function):
    """``(scores [..., n], alpha: float) -> weights [..., n]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, alpha: float) -> Tensor:
        weights: Tensor = ops.entmax(scores, alpha)
        return weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.alpha = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return _EntmaxBackward.apply(weights, grad, ctx.alpha), None


class _EntmaxBackward(torch.autograd.Function):
    """``(weights [..., n], grad [..., n], alpha: float) -> the scores' gradient [..., n]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, grad: Tensor, alpha: float) -> Tensor:
        pulled: Tensor = ops.entmax_backward(weights, grad, alpha)
        return pulled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        weights, grad, ctx.alpha = inputs
        ctx.save_for_backward(weights, grad)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, None]:
        # <outer, s (g - mean g)> is symmetric in outer and g; its derivative by s is (g - mean g)(outer - mean outer).
        weights, grad = ctx.saved_tensors
        slopes = slope(weights, ctx.alpha)
        mean, outer_mean = weighted_mean(slopes, grad), weighted_mean(slopes, outer)
        inside = weights != 0
        by_slope = (grad - mean) * (outer - outer_mean)
        by_weight = (2 - ctx.alpha) * slopes / torch.where(inside, weights, 1) * by_slope
        return torch.where(inside, by_weight, 0), pull_back(slopes, outer, outer_mean), None


class EntmaxPerRow(torch.autograd.Function):
    """``(scores [..., n], alpha broadcasting to [..., 1]) -> weights [..., n]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, alpha: Tensor) -> Tensor:
        weights: Tensor = ops.entmax_alpha(scores, alpha)
        return weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        weights, alpha = ctx.saved_tensors
        slopes = slope(weights, alpha)
        mean = weighted_mean(slopes, grad)
        by_alpha = None
        if ctx.needs_input_grad[1]:
            by_alpha = alpha_gradient(weights, grad, mean, alpha).sum_to_size(alpha.shape)
        return pull_back(slopes, grad, mean), by_alpha
