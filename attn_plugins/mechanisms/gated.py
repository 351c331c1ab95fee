"""Gated attention: a sigmoid gate on the heads' output, computed from the block's input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    x is what q, k and v are computed from, the block's input after its first norm. W and b start at zero, where
    the factor 2, which is not in the paper, makes the gate exactly 1: the model computes what it did, and the
    gradient of the gate is at its largest. Adds C * (C + 1) parameters a block.
    """

    def check(self, vit: ViT) -> None:
        for block in vit.blocks:
            vit.norm1(block)
            _width(vit.projection(block))
            if "postnorm" in type(block).__name__.lower() or "respost" in type(block).__name__.lower():
                raise UnsupportedModelError(
                    f"gated: {type(block).__qualname__} norms the attention's output, not its input, which "
                    "the gate reads; use a model with norms in front"
                )

    def apply(self, vit: ViT) -> None:
        for block in vit.blocks:
            norm, projection = vit.norm1(block), vit.projection(block)
            if not hasattr(projection, "attn_plugins_gated"):
                gate = _Gate(vit.cls_token.shape[-1], _width(projection))
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
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels))
        self.bias = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x: [..., C]`` to ``[..., width]`` in (0, 2)."""
        return 2 * torch.sigmoid(F.linear(x, self.weight, self.bias))


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
