"""Official DINOv1 (``vision_transformer.Attention``), and forks whose attention is the same code (iBOT).

Modifications:
- upstream's attention materialises the map and returns ``(x, attn)`` in every call. It still does when it is
  called on its own; but its block asks for the map only where somebody wants it (``return_attention=True``,
  hence ``get_last_selfattention``; a forward hook on the attention), and gets None for it otherwise;
- the map that is returned is the one that was used: sparse with a sparse normalizer.

Why upstream's forward does not run: it materialises [B, H, N, N] twice (weights and their gradient) in every training
step, for a map that nobody asks for.

Mirrors facebookresearch/dino at 7c446df5b9f45747937fb0d72314eb9f7b66930a.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attention import attention
from .base import Adapter, Container
from .exact import digest_of
from .qkv import dropout_p, finish, split_heads

__all__ = ["ADAPTER"]


ATTENTION = {"ece17395074fbc11"}
"""Digests (:mod:`.exact`) of ``Attention.forward``: facebookresearch/dino 7c446df, bytedance/ibot."""
BLOCK = {"e1110184fdba2daf"}
"""Of ``Block.forward``: facebookresearch/dino 7c446df."""


def _matches(cls: type) -> bool:
    return digest_of(getattr(cls, "forward", None)) in ATTENTION


def _attention_overrides(base: type) -> dict[str, Any]:
    def forward(self: Any, x: Tensor, return_attention: bool = True) -> tuple[Tensor, Tensor | None]:
        """``x: [B, N, C]`` to ``(y: [B, N, C], weights: [B, H, N, N] or None)``."""
        q, k, v = split_heads(self, x)
        arguments = {"dropout_p": dropout_p(self), "scale": self.scale, "normalizer": self.attn_plugins_normalizer}
        if return_attention:
            out, weights = attention(q, k, v, **arguments, return_weights=True)
        else:
            out, weights = attention(q, k, v, **arguments), None
        return finish(self, out), weights

    return {"forward": forward}


def _block_overrides(base: type) -> dict[str, Any]:
    def forward(self: Any, x: Tensor, return_attention: bool = False) -> Tensor:
        """``x: [B, N, C]`` to ``[B, N, C]``, or to the map ``[B, H, N, N]`` if ``return_attention``."""
        wanted = return_attention or bool(self.attn._forward_hooks)
        y, weights = self.attn(self.norm1(x), return_attention=wanted)
        if return_attention:
            return weights
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    return {"forward": forward}


def _is_block(cls: type) -> bool:
    return digest_of(getattr(cls, "forward", None)) in BLOCK


ADAPTER = Adapter("dinov1", _matches, _attention_overrides, around=(Container(_is_block, _block_overrides),))
