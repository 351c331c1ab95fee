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

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..attention import attention
from .base import Adapter, Codebase, Container
from .checkout import Checkout
from .exact import digest_of
from .parts import Builder, Features, Parts, Shape, StateDict
from .qkv import dropout_p, finish, split_heads
from .registers import inserted
from .timm import NAMES, same

__all__ = ["DINOV1"]

ATTENTION = {"ece17395074fbc11"}
"""Digests (``exact``) of ``Attention.forward``: facebookresearch/dino 7c446df, bytedance/ibot."""
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
        weights: Tensor
        y, weights = self.attn(self.norm1(x), return_attention=wanted)
        if return_attention:
            return weights
        x = x + self.drop_path(y)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x

    return {"forward": forward}


def _is_block(cls: type) -> bool:
    return digest_of(getattr(cls, "forward", None)) in BLOCK


ADAPTER = Adapter("dinov1", _matches, _attention_overrides, around=(Container(_is_block, _block_overrides),))


def _registers_enter(base: Any) -> dict[str, Any]:
    # Forks have further arguments (iBOT's mask): whatever upstream's signature is, it stays.
    def prepare_tokens(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return inserted(self, base.prepare_tokens(self, *args, **kwargs))

    def get_intermediate_layers(self: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
        return [self.attn_plugins_registers.drop(y) for y in base.get_intermediate_layers(self, *args, **kwargs)]

    def get_last_selfattention(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The map between [CLS] and patches, ``[B, H, 1 + N, 1 + N]``."""
        drop = self.attn_plugins_registers.drop
        weights: Tensor = drop(drop(base.get_last_selfattention(self, *args, **kwargs), -1), -2)
        return weights

    return {
        "prepare_tokens": prepare_tokens,
        "get_intermediate_layers": get_intermediate_layers,
        "get_last_selfattention": get_last_selfattention,
    }


def _arguments(shape: Shape | None, options: Mapping[str, Any]) -> dict[str, Any]:
    if shape is None or shape.grid is None:
        return dict(options)
    return {"patch_size": shape.patch_size, "img_size": [shape.grid * shape.patch_size], **options}


CHECKOUT = Checkout("dinov1", "DINO_ROOT", "vision_transformer", _arguments, NAMES, partial(same, renamed=False))
DINOV1 = Codebase(
    "dinov1",
    adapters=(ADAPTER,),
    vits=(Parts(("prepare_tokens", "get_last_selfattention"), enter=(("", _registers_enter),)),),
    features=Features(),
    state=StateDict(called="dino"),
    building=Builder("dinov1", CHECKOUT.build),
    constructor=("patch_embed", "blocks"),
)
