"""softmax, sparsemax and entmax as functions of scores (first version: plain torch)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..registry import register_normalizer

__all__ = ["EntmaxAlpha", "entmax", "entmax15", "entmax_alpha", "softmax", "sparsemax"]


class _Entmax(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, alpha: Tensor) -> Tensor:
        x = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        a1 = alpha.to(x.dtype) - 1
        top = x.amax(-1, keepdim=True)
        empty = top == -torch.inf
        x = (x - torch.where(empty, 0, top)) * a1
        lo, hi = torch.full_like(top, -1.0), torch.zeros_like(top)
        for _ in range(60):
            mid = (lo + hi) / 2
            big = (x - mid).clamp(min=0).pow(1 / a1).sum(-1, keepdim=True) >= 1
            lo, hi = torch.where(big, mid, lo), torch.where(big, hi, mid)
        p = (x - lo).clamp(min=0).pow(1 / a1)
        p = p / torch.where(empty, 1, p.sum(-1, keepdim=True))
        return torch.where(empty, 0, p).to(scores.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output, inputs[1])

    @staticmethod
    def backward(ctx, grad):
        p, alpha = ctx.saved_tensors
        g = torch.where(p > 0, torch.where(p > 0, p, 1).pow(2 - alpha.to(p.dtype)), 0)
        total = g.sum(-1, keepdim=True)
        d = g * (grad - (g * grad).sum(-1, keepdim=True) / torch.where(total > 0, total, 1))
        return d, None


def _entmax(scores: Tensor, alpha: float, dim: int) -> Tensor:
    if scores.numel() == 0:
        return scores.clone()
    return _Entmax.apply(scores.movedim(dim, -1), torch.tensor(alpha, device=scores.device)).movedim(-1, dim)


@register_normalizer("softmax", alpha=1.0)
def softmax(scores: Tensor, dim: int = -1) -> Tensor:
    """Softmax along ``dim``; a row of -inf gives zeros."""
    return torch._safe_softmax(scores, dim)


@register_normalizer("sparsemax", alpha=2.0)
def sparsemax(scores: Tensor, dim: int = -1) -> Tensor:
    """Sparsemax along ``dim``."""
    return _entmax(scores, 2.0, dim)


@register_normalizer("entmax15", alpha=1.5)
def entmax15(scores: Tensor, dim: int = -1) -> Tensor:
    """Entmax-1.5 along ``dim``."""
    return _entmax(scores, 1.5, dim)


@register_normalizer("entmax", alpha="alpha")
def entmax(scores: Tensor, alpha: float = 1.5, dim: int = -1) -> Tensor:
    """Entmax with a fixed alpha > 1 along ``dim``."""
    if not alpha > 1:
        raise ValueError(f"entmax needs alpha > 1, got {alpha}; alpha = 1 is softmax")
    return _entmax(scores, alpha, dim)


def entmax_alpha(scores: Tensor, alpha: Tensor, dim: int = -1) -> Tensor:
    """Entmax with a tensor of alphas that broadcasts to ``scores`` (gradient to alpha: next version)."""
    return _Entmax.apply(scores.movedim(dim, -1), alpha).movedim(-1, dim)


@register_normalizer("entmax_alpha")
class EntmaxAlpha(nn.Module):
    """Entmax with one learnable alpha per head."""

    def __init__(self, num_heads: int, learnable: bool = True, init: float = 1.5) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((num_heads,), init), requires_grad=learnable)

    @property
    def alpha(self) -> Tensor:
        return self.logit

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        return entmax_alpha(scores, self.alpha.view(-1, 1, 1), dim)
