"""Context broadcasting: the mean over all tokens, given to every token at the end of each MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..codebases.vit import ViT
from ..registry import register_mechanism
from ..swap import add_layer
from .base import Mechanism, Owned
from .layout import LAYOUT, share_layout

__all__ = ["ContextBroadcasting", "ScaledContextBroadcasting", "broadcast_context"]


def broadcast_context(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """``x: [B, N, C]`` to (x + mean(x)) / 2, or with ``scale: [C]`` to x + scale * mean(x); mean over tokens.

    Hyeon-Woo et al., "Scratching Visual Transformer's Back with Uniform Attention", ICCV 2023, Equation 1.
    """
    mean = x.mean(dim=1, keepdim=True)
    return (x + mean) / 2 if scale is None else x + scale.to(x.dtype) * mean


@register_mechanism("context_broadcasting")
class ContextBroadcasting(Mechanism):
    """The mean over tokens mixed half and half into each MLP's output. No parameters; changes the output at once.

    Hyeon-Woo et al., ICCV 2023 (arXiv 2210.08457), CB: x <- (x + mean(x)) / 2, over all tokens of an image.
    """

    adds_parameters = False

    def check(self, vit: ViT) -> None:
        for block in vit.blocks:
            vit.mlp(block)

    def apply(self, vit: ViT) -> None:
        for block in vit.blocks:
            mlp = vit.mlp(block)
            share_layout(vit, block, mlp)
            add_layer(mlp, _halves)


@register_mechanism("cb_s")
class ScaledContextBroadcasting(ContextBroadcasting):
    """The mean over tokens added to each MLP's output by a learnable scale per channel, zero at the start.

    Hyeon-Woo et al., ICCV 2023, CB_S: x <- x + scale * mean(x). Zero leaves the model's output as it was; the
    paper trains from scratch. Adds depth * C parameters, which are treated as LayerScale's are.
    """

    adds_parameters = True

    def apply(self, vit: ViT) -> None:
        for block in vit.blocks:
            mlp = vit.mlp(block)
            share_layout(vit, block, mlp)
            if not hasattr(mlp, "attn_plugins_cb_s"):
                mlp.attn_plugins_cb_s = _Scale(vit.cls_token.shape[-1]).like(vit.cls_token)
            add_layer(mlp, _scaled)


class _Scale(Owned):
    """The name ends in gamma, and the shape is [C]: no trainer decays it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)


def _halves(base: Any) -> dict[str, Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = getattr(self, LAYOUT).apply(base.forward(self, *args, **kwargs), broadcast_context)
        return y

    return {"forward": forward}


def _scaled(base: Any) -> dict[str, Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        scale = self.attn_plugins_cb_s.gamma
        out = base.forward(self, *args, **kwargs)
        y: Tensor = getattr(self, LAYOUT).apply(out, lambda x: broadcast_context(x, scale))
        return y

    return {"forward": forward}
