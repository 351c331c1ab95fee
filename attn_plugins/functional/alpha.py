"""entmax with a learnable alpha per attention head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..registry import register_normalizer
from .entmax import entmax_alpha
from .plain import sizes

__all__ = ["EntmaxAlpha"]

MIN_ALPHA = 1.01
"""Nearer to 1, d^(1 / (alpha - 1)) has no correct digits in float32; there entmax is softmax to about 1 %."""


@register_normalizer("entmax_alpha")
class EntmaxAlpha(nn.Module):
    """entmax whose sparsity each head learns: alpha = low + (high - low) * sigmoid(logit).

    Correia et al. 2019, arXiv 1909.00015, section 3. Adds one parameter per head, ``logit``.

    Args:
        num_heads: heads of the attention layer.
        learnable: whether alpha receives gradients.
        init: alpha of every head at the start, inside (low, high).
        low: lower end, 1 (softmax, never quite reached) or more.
        high: upper end, 2 (sparsemax) or less.
        drawn: start from logits that are drawn from N(0, 1), one a head, as in the authors' code; ``init`` is then not
            used.

    Raises:
        ValueError: num_heads < 1, not 1 <= low < high <= 2, or init not inside (low, high).
    """

    drawn = False  # in models that were pickled before there was a choice

    def __init__(
        self,
        num_heads: int,
        learnable: bool = True,
        init: float = 1.5,
        low: float = 1.0,
        high: float = 2.0,
        drawn: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads is 1 or more, got {num_heads}")
        if not 1 <= low < high <= 2:
            raise ValueError(f"learnable alpha needs 1 <= low < high <= 2, got low={low}, high={high}")
        if not low < init < high:
            raise ValueError(f"init={init} is not between low={low} and high={high}; choose one inside")
        self.low, self.high = low, high
        self.init, self.drawn = init, drawn
        self.logit = nn.Parameter(torch.empty(num_heads), requires_grad=learnable)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every head's alpha to its start; for trainers that build on the meta device and initialise afterwards."""
        if self.drawn:
            nn.init.normal_(self.logit)
            return
        share = (self.init - self.low) / (self.high - self.low)
        nn.init.constant_(self.logit, math.log(share / (1 - share)))

    @property
    def alpha(self) -> Tensor:
        """``[num_heads]``, in [1.01, 2]."""
        return (self.low + (self.high - self.low) * self.logit.sigmoid()).clamp(min=MIN_ALPHA)

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        """Weights ``[..., H, N, S]`` of scores ``[..., H, N, S]``.

        Raises:
            ValueError: dimension -3 is not the heads, or ``dim`` is not one of the last two.
        """
        if not isinstance(scores, Tensor):  # a proxy of torch.fx, which tells no shape
            return entmax_alpha(scores, self.alpha.view(-1, 1, 1), dim)
        (heads,), shape = sizes(self.logit), tuple(sizes(scores))
        if len(shape) < 3 or shape[-3] != heads:
            raise ValueError(f"scores are [..., {heads} heads, N, S], got shape {shape}")
        if dim - scores.dim() * (dim >= 0) not in (-1, -2):
            raise ValueError(f"rows lie along dim -1 or -2 of [..., H, N, S], got dim={dim}")
        return entmax_alpha(scores, self.alpha.view(-1, 1, 1), dim)

    def extra_repr(self) -> str:
        return f"num_heads={len(self.logit)}, low={self.low}, high={self.high}"
