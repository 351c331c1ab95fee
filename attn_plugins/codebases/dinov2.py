"""DINOv2's ``MemEffAttention`` and ``Attention`` where they do not call torch's SDPA.

That is: official DINOv2 (xformers, with a ``BlockDiagonalMask`` for nested batches of crops), DINOv2 before
June 2025, lightly-train's DINOv2, MAE's and other forks of timm 0.4 to 0.6 (softmax over materialised weights),
where the code is exactly theirs. Official DINOv2's ``Attention`` of today calls SDPA and is left to ``generic``,
as are forks that changed anything.

Modifications:
- one forward for the path with and the path without xformers; xformers' own kernels are not needed, also not
  for nested batches, on any device;
- attention dropout follows ``Attention`` (``MemEffAttention`` with xformers ignores it).

Why upstream's forward does not run: packed batches of crops are computed sequence by sequence, without xformers' fused
kernel that no CPU has; and the plain form takes the fused kernels of this package instead of materialised weights.

Mirrors facebookresearch/dinov2 at b8931f7bf91576930313be2c6d6af376033b35f0.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from .base import Adapter, Codebase
from .checkout import Checkout
from .exact import digest_of
from .packing import packing
from .parts import Builder, Features, OwnRegisters, Parts, Shape, StateDict
from .qkv import attend
from .registers import native
from .timm import same

__all__ = ["DINOV2"]

FORWARDS = {
    "45aaa3cfea71760f",  # MemEffAttention: facebookresearch/dinov2 b8931f7 (since ebc1cba), lightly-train 0.18
    "462c76aa70740308",  # Attention: facebookresearch/dinov2 fc49f49 to 81b2b64, lightly-train 0.18
    "72bb8e9cb37919d2",  # Attention: timm 0.4.12, and with it MAE
    "75f33abbba615501",  # Attention: timm 0.5.4 and 0.6.13
}
"""Digests (``exact``) of ``forward``."""


def _matches(cls: type) -> bool:
    return digest_of(getattr(cls, "forward", None)) in FORWARDS


def _overrides(base: type) -> dict[str, Any]:
    def forward(self: Any, x: Tensor, attn_bias: Any = None) -> Tensor:
        """``x: [B, N, C]`` (packed: ``[1, sum of lengths, C]`` with a ``BlockDiagonalMask``) to the same shape."""
        return attend(self, x, attn_mask=attn_bias)

    return {"forward": forward}


ADAPTER = Adapter("dinov2", _matches, _overrides)


IN_TIMM = {
    "vit_small": "vit_small_patch14_{}dinov2",
    "vit_base": "vit_base_patch14_{}dinov2",
    "vit_large": "vit_large_patch14_{}dinov2",
    "vit_giant2": "vit_giant_patch14_{}dinov2",
}


def _registers_enter(base: Any) -> dict[str, Any]:
    return native(base, "register_tokens", "num_register_tokens")


def scales_inside(base: Any) -> dict[str, Any]:
    """The block hands the bare LayerScale vector to the addition; here the branches scale their own tokens.

    Mirrors ``NestedTensorBlock.forward_nested`` of facebookresearch/dinov2 at b8931f7.
    """
    if not hasattr(base, "forward_nested"):
        return {}

    def forward_nested(self: Any, x_list: list[Tensor]) -> list[Tensor]:
        if not self.training or self.sample_drop_ratio == 0:
            plain: list[Tensor] = base.forward_nested(self, x_list)
            return plain

        def attend(x: Tensor, attn_bias: Any = None) -> Tensor:
            y: Tensor = self.ls1(self.attn(self.norm1(x), attn_bias=attn_bias))
            return y

        def feed_forward(x: Tensor, attn_bias: Any = None) -> Tensor:
            y: Tensor = self.ls2(self.mlp(self.norm2(x)))
            return y

        add = sys.modules[base.__module__].drop_add_residual_stochastic_depth_list
        for branch in (attend, feed_forward):
            x_list = add(x_list, residual_func=branch, sample_drop_ratio=self.sample_drop_ratio)
        return x_list

    return {"forward_nested": forward_nested}


def _is_ours(keys: Collection[str], heads: Collection[str]) -> bool:
    return "mask_token" in keys


def _arguments(shape: Shape | None, options: Mapping[str, Any]) -> dict[str, Any]:
    # Released models with registers resample positions with antialiasing and no 0.1 offset (hub/backbones.py).
    registers = shape.registers if shape else 0
    return {
        **({"patch_size": shape.patch_size, "img_size": shape.grid * shape.patch_size} if shape and shape.grid else {}),
        "init_values": 1.0,
        "block_chunks": 0,
        "ffn_layer": "swiglufused" if shape and shape.ffn == "swiglu" else "mlp",
        "num_register_tokens": registers,
        "interpolate_antialias": registers > 0,
        "interpolate_offset": 0.0 if registers else 0.1,
        **options,
    }


CHECKOUT = Checkout("dinov2", "DINOV2_ROOT", "dinov2.models.vision_transformer", _arguments, IN_TIMM, same)
DINOV2 = Codebase(
    "dinov2",
    adapters=(ADAPTER,),
    vits=(
        Parts(
            ("prepare_tokens_with_masks", "num_register_tokens"),
            # Read from the instance: a patched class answers with further registers added.
            registers=lambda root: int(vars(root).get("num_register_tokens") or 0),
            option="num_register_tokens",
            # dinov2/models/vision_transformer.py (init_weights); utils/param_groups.py spares biases, norms and gammas.
            own_registers=OwnRegisters(std=1e-6, decay=True),
            enter=(("", _registers_enter),),
            packs=packing,
            scales=scales_inside,
        ),
    ),
    features=Features(),
    state=StateDict(_is_ours),
    building=Builder("dinov2", CHECKOUT.build),
    constructor=("patch_embed", "blocks"),
)
