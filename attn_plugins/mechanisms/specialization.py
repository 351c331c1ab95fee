"""Token specialization: parameters of their own for [CLS] (with registers) and for patches."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..codebases.dinov2 import scales_inside as _scales_inside  # noqa: F401 - the name that pickles of release 0.1 hold
from ..codebases.vit import ViT
from ..errors import UnsupportedModelError
from ..registry import register_mechanism
from ..swap import COPIED, add_layer
from .base import Mechanism
from .layout import LAYOUT, Layout, share_layout

__all__ = ["Specialization"]

COPY = "attn_plugins_specialization"
TOKENS = COPY + "__tokens"
GAMMAS = ("gamma_1", "gamma_2")
"""LayerScale of timm's Eva blocks (EVA-02, DINOv3 there), which are parameters and not modules."""


@register_mechanism("specialization")
class Specialization(Mechanism):
    """[CLS] and registers get norms, LayerScale and (first third of the blocks) q, k, v projections of their own.

    Marouani et al., ICLR 2026 (arXiv 2602.08626): every block's two norms and LayerScale, the final norm, and the
    qkv projection of the first third of the blocks; tokens still attend jointly. The parameters of [CLS] start as
    copies, so the model computes what it did. Adds 3 d^2 a specialised projection: 8.3 % for ViT-S, B and L. Each
    kind of token goes through its own matrix only, so the FLOPs are those of the plain model.
    """

    order = 0

    def check(self, vit: ViT) -> None:
        name = type(vit.root).__qualname__
        norms = vit.cls_norms()
        if any(norms) and norms[0] is None:
            raise UnsupportedModelError(
                f"specialization: {name} has untie_global_and_local_cls_norm=True and calls its final norm on [CLS] "
                "and patches apart; build it with untie_cls_and_patch_norms=True too, or without either"
            )
        for block in vit.blocks:
            for part in (vit.norm1, vit.norm2, vit.qkv):
                part(block)
            attention = vit.attention(block)
            fused = getattr(attention, "qkv", None) is not None
            if fused and isinstance(getattr(attention, "q_bias", None), nn.Parameter):
                raise UnsupportedModelError(
                    f"specialization: {type(attention).__qualname__} of {name} computes with its bare parameters "
                    "(q_bias, v_bias) and the weight of its qkv, which is not called; build it with qkv_fused=False, "
                    "or use the official or the transformers model"
                )

    def apply(self, vit: ViT) -> None:
        for index, block in enumerate(vit.blocks):
            parts = [vit.norm1(block), vit.norm2(block), *vit.layer_scales(block)]
            if index < max(1, len(vit.blocks) // 3):
                parts += vit.qkv(block)
            share_layout(vit, block, *parts)
            for module in parts:
                _specialize(module)
            if vit.layer_scales(block) and vit.known.scales is not None:
                add_layer(block, vit.known.scales)
            if isinstance(getattr(block, GAMMAS[0], None), nn.Parameter):
                _specialize_bare_scales(block)
        if list(vit.norm.parameters()) and not any(vit.cls_norms()):
            setattr(vit.norm, LAYOUT, Layout(vit.prefix))
            _specialize(vit.norm)


def _specialize(module: nn.Module) -> None:
    if not hasattr(module, COPY):
        twin = copy.deepcopy(module)
        vars(twin).pop(LAYOUT)
        setattr(twin, COPIED, True)
        setattr(module, COPY, twin)
    add_layer(module, _by_kind)


def _by_kind(base: Any) -> dict[str, Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        layout: Layout = getattr(self, LAYOUT)

        def apart(tokens: Tensor) -> Tensor:
            prefix, patches = tokens.split([layout.prefix, tokens.shape[1] - layout.prefix], dim=1)
            return torch.cat([getattr(self, COPY)(prefix), base.forward(self, patches)], dim=1)

        return layout.apply(x, apart)

    return {"forward": forward}


def _specialize_bare_scales(block: nn.Module) -> None:
    if not hasattr(block, COPY):
        own = nn.Module()
        for name in GAMMAS:
            own.register_parameter(name, copy.deepcopy(getattr(block, name)))
        setattr(own, COPIED, True)
        setattr(block, COPY, own)
    add_layer(block, _bare_scales)


def _bare_scales(base: Any) -> dict[str, Any]:
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        setattr(self, TOKENS, x.shape[1])
        try:
            y: Tensor = base.forward(self, x, *args, **kwargs)
            return y
        finally:
            delattr(self, TOKENS)

    def reset_parameters(self: Any) -> None:
        base.reset_parameters(self)
        for name, parameter in getattr(self, COPY).named_parameters():
            parameter.data.copy_(getattr(self, name))

    return {"forward": forward, "reset_parameters": reset_parameters} | {name: _per_token(name) for name in GAMMAS}


def _per_token(name: str) -> property:
    """Inside the block's forward the scale of every token, ``[N, C]``; elsewhere the parameter, ``[C]`` or None."""

    def get(self: Any) -> Tensor | None:
        # FSDP and the replicas of nn.DataParallel keep plain tensors in place of the parameters.
        state = self.__dict__
        own: Any = state[name] if name in state else nn.Module.__getattr__(self, name)
        if own is None or TOKENS not in state:
            whole: Tensor | None = own
            return whole
        prefix = getattr(self, LAYOUT).prefix
        scale = getattr(self._modules[COPY], name)
        return torch.cat([scale.expand(prefix, -1), own.expand(state[TOKENS] - prefix, -1)])

    def put(self: Any, value: Tensor) -> None:
        self.__dict__[name] = value

    def drop(self: Any) -> None:
        del self.__dict__[name]

    return property(get, put, drop)
