"""Gated attention: a sigmoid gate on the heads' output, computed from the block's input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codebases.base import heads_attribute
from ..codebases.vit import ViT
from ..errors import UnsupportedModelError
from ..registry import register_mechanism
from ..swap import add_layer
from .base import Mechanism, Owned

__all__ = ["Gated"]


@register_mechanism("gated")
class Gated(Mechanism):
    """Each channel of the attention's output, before its projection, is gated by 2 * sigmoid(W x + b).

    Qiu et al., "Gated Attention for Large Language Models", 2025 (elementwise gate after the heads, their best):
    x is what q, k and v are computed from, the block's input after its first norm. Two things are ours: the bias, and
    the factor 2. W and b start at zero, where the factor makes the gate exactly 1: the model computes what it did, and
    the gradient of the gate is at its largest. Adds C * (C + 1) parameters a block.

    Args:
        paper: the authors' gate, sigmoid(W x): no bias and no factor, W from N(0, 0.02), so that it starts near 0.5 and
            the model computes something else.
        headwise: one gate a head, which all of its channels share: H instead of C rows of W.
    """

    def __init__(self, paper: bool = False, headwise: bool = False) -> None:
        self.paper, self.headwise = paper, headwise

    def check(self, vit: ViT) -> None:
        for block in vit.blocks:
            vit.norm1(block)
            width = _width(vit.projection(block))
            if self.headwise:
                _heads(vit.attention(block), width)
            if "postnorm" in type(block).__name__.lower() or "respost" in type(block).__name__.lower():
                raise UnsupportedModelError(
                    f"gated: {type(block).__qualname__} norms the attention's output, not its input, which "
                    "the gate reads; use a model with norms in front"
                )

    def apply(self, vit: ViT) -> None:
        for block in vit.blocks:
            norm, projection = vit.norm1(block), vit.projection(block)
            if not hasattr(projection, "attn_plugins_gated"):
                width = _width(projection)
                gates = _heads(vit.attention(block), width) if self.headwise else width
                gate = _Gate(vit.cls_token.shape[-1], gates, width, self.paper)
                projection.attn_plugins_gated = gate.like(vit.cls_token)
            norm.attn_plugins_gated__input = projection.attn_plugins_gated__input = _Input()
            add_layer(norm, _shows)
            add_layer(projection, _gates)


def _width(projection: nn.Module) -> int:
    """The channels that enter a projection, which may hold its linear layer among others.

    Raises:
        UnsupportedModelError: it has no linear layer that tells.
    """
    for module in projection.modules():
        if isinstance(channels := getattr(module, "in_features", None), int):
            return channels
    raise UnsupportedModelError(
        f"gated: a {type(projection).__qualname__} after the heads does not tell how many channels enter it "
        "(in_features); project by an nn.Linear"
    )


def _heads(attention: nn.Module, width: int) -> int:
    """Heads of a layer whose output has ``width`` channels.

    Raises:
        UnsupportedModelError: it does not tell, or they do not share the channels evenly.
    """
    heads = heads_attribute(attention)
    if not heads or width % heads:
        raise UnsupportedModelError(
            f"gated: {type(attention).__qualname__} has {width} channels and tells {heads} heads, so no gate a head; "
            "use headwise=false"
        )
    return heads


class _Input:
    """Carries the attention's input from its norm to its projection; empty outside of a block's forward.

    By device, since the replicas of ``nn.DataParallel`` share it.
    """

    def __init__(self) -> None:
        self.x: dict[torch.device, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Input:
        # A tensor that a forward left here belongs to that forward's graph.
        copied: _Input = memo.setdefault(id(self), _Input())
        return copied


class _Gate(Owned):
    """Gates ``[..., gates]``, each for ``width // gates`` channels that lie side by side."""

    # Models that were pickled before there was a choice have these.
    paper, each = False, 1

    def __init__(self, channels: int, gates: int, width: int, paper: bool) -> None:
        super().__init__()
        self.paper, self.each = paper, width // gates
        self.weight = nn.Parameter(torch.empty(gates, channels))
        self.bias = None if paper else nn.Parameter(torch.empty(gates))

    def reset_parameters(self) -> None:
        if self.bias is None:
            nn.init.normal_(self.weight, std=0.02)
        else:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x: [..., C]`` to ``[..., width]`` in (0, 2), or in (0, 1) as the paper has it."""
        gate = torch.sigmoid(F.linear(x, self.weight, self.bias))
        gate = gate if self.paper else 2 * gate
        return gate if self.each == 1 else gate.repeat_interleave(self.each, dim=-1)


def _shows(base: Any) -> dict[str, Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = base.forward(self, *args, **kwargs)
        self.attn_plugins_gated__input.x[y.device] = y
        return y

    return {"forward": forward}


def _gates(base: Any) -> dict[str, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate = self.attn_plugins_gated(self.attn_plugins_gated__input.x.pop(x.device))
        y: Tensor = base.forward(self, x * gate)
        return y

    return {"forward": forward}
