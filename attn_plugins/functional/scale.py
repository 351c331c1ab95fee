"""Factors on the scores in front of a normalizer: normalizer(s * z), its temperature being 1 / s.

Entmax of the same scores is far sharper than softmax; the factor says how sharp. Attention multiplies the query by it
(or passes a number on as the kernel's own scale), which costs nothing; the weights of the projections stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .plain import sizes

__all__ = ["ConstantScale", "HeadScale", "LengthScale", "ScoreScale"]


class ScoreScale(nn.Module):
    """A normalizer behind a factor on its scores.

    Attributes:
        inner: the normalizer itself.
    """

    inner: Callable[..., Tensor]

    @property
    def alpha(self) -> float | Tensor | None:
        """The entmax exponent of the normalizer itself."""
        return getattr(self.inner, "alpha", None)

    def factor(self, call: Any) -> Tensor | float:
        """What the scores are multiplied by: a number, or a tensor that broadcasts to ``[..., H, N, 1]``.

        Args:
            call: the ``attn_plugins.AttentionCall``.

        Raises:
            NotImplementedError: always, here: every kind of scale says it for itself.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say by what scores are multiplied")

    def reset_parameters(self) -> None:
        """To the start; for trainers that build on the meta device and initialise afterwards."""
        if isinstance(self.inner, nn.Module):
            reset: Any = self.inner.reset_parameters
            reset()


class ConstantScale(ScoreScale):
    """One number for all heads; for normalizers that are modules.

    Args:
        inner: the normalizer.
        value: the factor.
    """

    def __init__(self, inner: Callable[..., Tensor], value: float) -> None:
        super().__init__()
        self.inner, self.value = inner, value

    def factor(self, call: Any) -> float:
        return self.value

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        """Weights ``[..., H, N, S]`` of scores of that shape."""
        return self.inner(scores * self.value, dim=dim)


class HeadScale(ScoreScale):
    """One factor a head: exp(log_scale), 1 at the start.

    Args:
        inner: the normalizer.
        num_heads: heads of the attention layer.
        learnable: whether ``log_scale`` is a parameter; otherwise it is a buffer, for values that were calibrated.
    """

    log_scale: Tensor

    def __init__(self, inner: Callable[..., Tensor], num_heads: int, learnable: bool = False) -> None:
        super().__init__()
        self.inner = inner
        if learnable:
            self.log_scale = nn.Parameter(torch.zeros(num_heads))
        else:
            self.register_buffer("log_scale", torch.zeros(num_heads))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.log_scale.zero_()

    @property
    def scale(self) -> Tensor:
        """``[num_heads]``."""
        return self.log_scale.exp()

    def factor(self, call: Any) -> Tensor:
        """``[num_heads, 1, 1]``.

        Raises:
            ValueError: dimension -3 is not the heads.
        """
        return self._of(call.query, "queries")

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        """Weights ``[..., H, N, S]`` of scores of that shape.

        Raises:
            ValueError: dimension -3 is not the heads.
        """
        return self.inner(scores * self._of(scores, "scores"), dim=dim)

    def _of(self, tensor: Tensor, what: str) -> Tensor:
        scale = self.scale.view(-1, 1, 1)
        if not isinstance(tensor, Tensor):  # a proxy of torch.fx, which tells no shape
            return scale
        (heads,), shape = sizes(self.log_scale), tuple(sizes(tensor))
        if len(shape) < 3 or shape[-3] != heads:
            raise ValueError(f"{what} are [..., {heads} heads, N, .], got shape {shape}")
        return scale.to(tensor.dtype)

    def extra_repr(self) -> str:
        return f"num_heads={len(self.log_scale)}, learnable={isinstance(self.log_scale, nn.Parameter)}"


class LengthScale(ScoreScale):
    """delta + beta (log n)^gamma for n keys, beta = softplus(w . q + b) of the query; all of it learned, per head.

    Vasylenko et al. 2025, "Long-Context Generalization with Sparse Attention" (ASEntmax). It starts at 1 for every
    number of keys: w, b and gamma are zero and delta is 1 - log 2; the paper states no start that leaves a trained
    model as it is. n is counted to 2 at least, since log 1 is 0.

    Args:
        inner: the normalizer.
        num_heads: heads of the attention layer.
        head_dim: channels of a head's query.
    """

    def __init__(self, inner: Callable[..., Tensor], num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.inner = inner
        self.delta, self.gamma, self.bias = (nn.Parameter(torch.empty(num_heads)) for _ in range(3))
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim))
        LengthScale.reset_parameters(self)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for parameter in (self.gamma, self.bias, self.weight):
            nn.init.zeros_(parameter)
        nn.init.constant_(self.delta, 1 - float(torch.log(torch.tensor(2.0, dtype=torch.float64))))

    def factor(self, call: Any) -> Tensor:
        """``[..., H, N, 1]``.

        Raises:
            ValueError: dimension -3 is not the heads, or the last not ``head_dim``.
        """
        query = call.query
        heads, width = sizes(self.weight)
        shape = tuple(sizes(query))
        if len(shape) < 3 or shape[-3] != heads or shape[-1] != width:
            raise ValueError(f"queries are [..., {heads} heads, N, {width}], got shape {shape}")
        wide = torch.promote_types(query.dtype, torch.float32)
        delta, gamma, bias = (p.to(wide).view(-1, 1, 1) for p in (self.delta, self.gamma, self.bias))
        beta = F.softplus((query.to(wide) * self.weight.to(wide).unsqueeze(-2)).sum(-1, keepdim=True) + bias)
        logs = _keys(call).to(wide).clamp(min=2).log()
        return (delta + beta * logs**gamma).to(query.dtype)

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        """Raise: the scores alone do not tell the query.

        Raises:
            UnsupportedModelError: always.
        """
        raise UnsupportedModelError(
            "scale=asentmax needs the query, and this layer takes the softmax of its scores itself; use a fused path "
            "of the model (F.scaled_dot_product_attention), or scale=per_head or scale=learnable"
        )

    def extra_repr(self) -> str:
        return f"num_heads={len(self.weight)}, head_dim={self.weight.shape[1]}"


def _keys(call: Any) -> Tensor:
    """How many keys every query of a call sees; broadcasts to ``[..., H, N, 1]``."""
    device, queries, keys = call.query.device, call.query.shape[-2], call.key.shape[-2]
    if call.lengths is not None:
        counts = torch.tensor(call.lengths, device=device)
        return counts.repeat_interleave(counts).unsqueeze(-1)
    if isinstance(call.attn_mask, Tensor):
        mask = call.attn_mask
        seen = mask if mask.dtype == torch.bool else mask > -torch.inf
        return seen.expand(*seen.shape[:-1], keys).sum(-1, keepdim=True)
    if call.is_causal is True:
        return torch.arange(1, queries + 1, device=device).clamp(max=keys).unsqueeze(-1)
    return torch.full((1, 1), keys, device=device)
