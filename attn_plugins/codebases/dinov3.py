"""Official DINOv3 and lightly-train's. Its attention calls SDPA and is left to ``generic``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .base import Codebase
from .checkout import Checkout
from .packing import packing
from .parts import Builder, Features, OwnRegisters, Parts, Shape, StateDict
from .registers import native
from .timm import same_rotary

__all__ = ["DINOV3"]

IN_TIMM = {
    "vit_small": "vit_small_patch16_dinov3_qkvb",
    "vit_base": "vit_base_patch16_dinov3_qkvb",
    "vit_large": "vit_large_patch16_dinov3_qkvb",
    "vit_huge2": "vit_huge_plus_patch16_dinov3_qkvb",
    "vit_7b": "vit_7b_patch16_dinov3",
}
IN_HUB = {
    "vit_small": "dinov3_vits16",
    "vit_base": "dinov3_vitb16",
    "vit_large": "dinov3_vitl16",
    "vit_huge2": "dinov3_vith16plus",
    "vit_7b": "dinov3_vit7b16",
}


def _registers_enter(base: Any) -> dict[str, Any]:
    return native(base, "storage_tokens", "n_storage_tokens")


def _is_ours(keys: Collection[str], heads: Collection[str]) -> bool:
    return "pos_embed" not in keys


def _arguments(shape: Shape | None, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"pretrained": False, **options}


CHECKOUT = Checkout("dinov3", "DINOV3_ROOT", "dinov3.hub.backbones", _arguments, IN_TIMM, same_rotary, IN_HUB)
DINOV3 = Codebase(
    "dinov3",
    vits=(
        Parts(
            ("prepare_tokens_with_masks", "n_storage_tokens"),
            # Read from the instance: a patched class answers with further registers added.
            registers=lambda root: int(vars(root).get("n_storage_tokens") or 0),
            option="n_storage_tokens",
            # dinov3/models/vision_transformer.py (init_weights); train/param_groups.py says otherwise and decays them.
            own_registers=OwnRegisters(std=0.02, decay=True),
            enter=(("", _registers_enter),),
            packs=packing,
            cls_norms=("cls_norm", "local_cls_norm"),
        ),
    ),
    features=Features(cls_norm="cls_norm"),
    state=StateDict(_is_ours),
    building=Builder("dinov3", CHECKOUT.build),
    constructor=("patch_embed", "blocks"),
)
