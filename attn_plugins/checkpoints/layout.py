"""Which keys of a state dict are the backbone's, and what they say about its shape."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .errors import CheckpointError

__all__ = ["Shape", "backbone_keys", "candidates", "flat_key", "grid_side", "sections", "shape_of"]

_PATCH_EMBED = "patch_embed.proj.weight"
_CHUNKED = re.compile(r"\bblocks\.(\d+)\.(\d+)\.")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_HEADS = ("head", "head_dist", "fc", "fc_norm", "dino_head", "ibot_head")
_REGISTERS = ("register_tokens", "storage_tokens", "reg_token")  # DINOv2, DINOv3, timm
# (embed_dim, depth) → name and heads, as the DINO code bases call them. Head size is 64, in the 7B model 128.
_ARCHITECTURES = {
    (192, 12): ("vit_tiny", 3),
    (384, 12): ("vit_small", 6),
    (768, 12): ("vit_base", 12),
    (1024, 24): ("vit_large", 16),
    (1152, 27): ("vit_so400m", 18),
    (1280, 32): ("vit_huge2", 20),
    (1536, 40): ("vit_giant2", 24),
    (4096, 40): ("vit_7b", 32),
}


@dataclass(frozen=True)
class Shape:
    """What the tensors alone tell about a ViT.

    Attributes:
        codebase: whose modules have these keys: `dino`, `dinov2`, `dinov3` or `timm`. DINOv1 and timm name
            theirs
            alike; a classifier decides for timm. lightly-train's own models are DINOv2's or DINOv3's.
        architecture: `vit_small`, …; `vit(embed_dim=…, depth=…)` where nobody has named it.
        num_heads: attention heads of that architecture; None where the shape leaves it open.
        grid: side of the position embedding's grid, in patches; None where positions are rotary.
        registers: native register (storage) tokens.
        ffn: `mlp` or `swiglu`.
        layer_scale: whether blocks scale their residuals.
        chunks: block chunks of the saved model (DINOv2's `block_chunks`), 0 for a plain list.
    """

    codebase: str
    architecture: str
    embed_dim: int
    depth: int
    num_heads: int | None
    patch_size: int
    grid: int | None
    registers: int
    ffn: str
    layer_scale: bool
    chunks: int


def sections(checkpoint: Any) -> dict[str, Mapping[str, Any]]:
    """{name: state dict} of a loaded checkpoint: the mappings it holds, and "" for the file itself."""
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"expected a dict of tensors, got {type(checkpoint).__name__}")
    inner = {name: value for name, value in checkpoint.items() if isinstance(name, str) and isinstance(value, Mapping)}
    return {"": checkpoint, **inner}


def candidates(checkpoint: Any) -> dict[tuple[str, str], Mapping[str, Any]]:
    """{(section, prefix): state dict} of every backbone in a loaded checkpoint."""
    found = {}
    for section, state in sections(checkpoint).items():
        for key, value in state.items():
            if isinstance(key, str) and key.endswith(_PATCH_EMBED) and isinstance(value, torch.Tensor):
                found[section, key.removesuffix(_PATCH_EMBED)] = state
    return found


def backbone_keys(state: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """{key in the file: key of an unwrapped, unchunked backbone}, heads left out."""
    keys = {}
    for key, value in state.items():
        if isinstance(key, str) and key.startswith(prefix) and isinstance(value, torch.Tensor):
            plain = flat_key(key[len(prefix) :])
            if plain.split(".", 1)[0] not in _HEADS:
                keys[key] = plain
    return keys


def flat_key(key: str) -> str:
    """A key as a plain block list would have it: `blocks.1.7.norm1.weight` → `blocks.7.norm1.weight`.

    DINOv2 pads each chunk with identities so that the second number is the block's own index.
    """
    return _CHUNKED.sub(r"blocks.\2.", _unwrapped(key))


def shape_of(state: Mapping[str, torch.Tensor], keys: Mapping[str, str], *, classifier: bool = False) -> Shape:
    """Read the architecture off the tensors.

    Args:
        state: the state dict that holds them.
        keys: `backbone_keys` of it.
        classifier: whether a classification head lies beside the backbone.
    """
    tensors = {plain: state[key] for key, plain in keys.items()}
    embed_dim, _, patch_size = tensors[_PATCH_EMBED].shape[:3]
    blocks = {int(match[1]) for match in map(_BLOCK.match, tensors) if match}
    if "cls_token" not in tensors or blocks != set(range(len(blocks))) or not blocks:
        raise CheckpointError(
            f"not a Vision Transformer with a [CLS] token: blocks {sorted(blocks)}, keys {_some(tensors)}"
        )
    registers = [tensors[name].shape[1] for name in _REGISTERS if name in tensors]
    depth = len(blocks)
    architecture, heads = _ARCHITECTURES.get((embed_dim, depth), (f"vit(embed_dim={embed_dim}, depth={depth})", None))
    chunks = {match[1] for match in map(_CHUNKED.search, map(_unwrapped, keys)) if match}
    return Shape(
        codebase=_codebase(tensors, classifier),
        architecture=architecture,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=heads,
        patch_size=patch_size,
        grid=grid_side(tensors["pos_embed"])[0] if "pos_embed" in tensors else None,
        registers=registers[0] if registers else 0,
        ffn="mlp" if "blocks.0.mlp.fc1.weight" in tensors else "swiglu",
        layer_scale="blocks.0.ls1.gamma" in tensors,
        chunks=len(chunks),
    )


def grid_side(pos_embed: torch.Tensor) -> tuple[int, int]:
    """pos_embed: [1, P + G², D] → (G, P), with P = 0 or 1 positions of prefix tokens."""
    tokens = pos_embed.shape[1]
    for prefix in (1, 0):
        side = math.isqrt(tokens - prefix)
        if side * side == tokens - prefix:
            return side, prefix
    raise CheckpointError(
        f"position embedding of {tokens} tokens is no square grid, with or without [CLS]: train and save "
        "with square images, or resize the embedding to a square grid before loading"
    )


def _unwrapped(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _codebase(tensors: Mapping[str, torch.Tensor], classifier: bool) -> str:
    if "pos_embed" not in tensors:
        return "dinov3"
    if "mask_token" in tensors:
        return "dinov2"
    return "timm" if classifier or "reg_token" in tensors else "dino"


def _some(keys: Iterable[str], count: int = 5) -> str:
    names = sorted(keys)
    return ", ".join(names[:count]) + (f", … ({len(names)} in all)" if len(names) > count else "")
