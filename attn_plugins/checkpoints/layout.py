"""Which keys of a state dict are the backbone's, and what they say about its shape."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..codebases.base import PREFIX
from ..record import RECORD
from .errors import CheckpointError

__all__ = [
    "Shape",
    "backbone_keys",
    "candidates",
    "flat_key",
    "is_head",
    "is_record",
    "sections",
    "shape_of",
    "square_grid",
]

# Stem of DINOv1/2/3 and timm first; then of transformers' ViTs: ViT and DINOv2, DINOv3, CLIP and SigLIP.
_STEMS = (
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "embeddings.patch_embedding.weight",
)
_CHUNKED = re.compile(r"\bblocks\.(\d+)\.(\d+)\.")
_BLOCK = re.compile(r"^(?:blocks|(?:model\.|encoder\.)?layers?)\.(\d+)\.")
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
# What only training or a classifier needs: DINO's heads, timm's, MAE's decoder, iBOT's mask.
_HEADS = re.compile(r"(?:head|head_dist|fc|fc_norm|dino_head|ibot_head|masked_embed|decoder_\w+)(?:\.|$)")
_REGISTERS = ("register_tokens", "storage_tokens", "reg_token", "embeddings.register_tokens")  # DINOv2, v3, timm, HF
_CLS = ("cls_token", "embeddings.cls_token", "embeddings.class_embedding")
_NESTED = 3  # how deep state dicts lie in a file: {"app": {"model": {...}}}
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
        codebase: whose modules have these keys: `dino`, `dinov2`, `dinov3`, `timm`, `mae` or `transformers`. DINOv1,
            iBOT and timm name theirs alike; a classifier decides for timm. lightly-train's own models are DINOv2's
            or DINOv3's.
        architecture: `vit_small`, …; `vit(embed_dim=…, depth=…)` where nobody has named it.
        num_heads: attention heads of that architecture; None where the shape leaves it open.
        grid: side of the position embedding's grid, in patches; None where positions are rotary or no square grid.
        positions: tokens that have a position embedding; None where positions are rotary.
        registers: native register (storage) tokens.
        ffn: `mlp` or `swiglu`.
        layer_scale: whether blocks scale their residuals.
        chunks: block chunks of the saved model (DINOv2's `block_chunks`), 0 for a plain list.
        problem: why this is no Vision Transformer that is known here; None if it is one.
    """

    codebase: str
    architecture: str
    embed_dim: int
    depth: int
    num_heads: int | None
    patch_size: int
    grid: int | None
    positions: int | None
    registers: int
    ffn: str
    layer_scale: bool
    chunks: int
    problem: str | None = None


def sections(checkpoint: Any) -> dict[str, Mapping[str, Any]]:
    """{name: mapping} of what a loaded checkpoint holds, "" for the file itself and `app.model` for one inside another.

    Raises:
        CheckpointError: the file is no mapping.
    """
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"expected a dict of tensors, got {type(checkpoint).__name__}")
    found: dict[str, Mapping[str, Any]] = {"": checkpoint}
    level = found
    for _ in range(_NESTED):
        level = {
            f"{place}.{name}" if place else name: value
            for place, mapping in level.items()
            for name, value in mapping.items()
            if isinstance(name, str) and isinstance(value, Mapping)
        }
        found = found | level
    return found


def candidates(checkpoint: Any) -> dict[tuple[str, str], Mapping[str, Any]]:
    """{(section, prefix): state dict} of every backbone in a loaded checkpoint."""
    found = {}
    for section, state in sections(checkpoint).items():
        for key, value in state.items():
            stem = _stem(key) if isinstance(value, Tensor) else None
            if stem is not None:
                found[section, key.removesuffix(stem)] = state
    return found


def backbone_keys(state: Mapping[str, Any], prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """{key in the file: key of an unwrapped, unchunked backbone}, and the same of heads; records are in neither."""
    keys: dict[str, str] = {}
    heads: dict[str, str] = {}
    for key, value in state.items():
        if isinstance(key, str) and key.startswith(prefix) and isinstance(value, Tensor) and not is_record(key):
            plain = flat_key(key[len(prefix) :])
            (heads if is_head(plain) else keys)[key] = plain
    if any(plain.startswith("decoder_") for plain in heads.values()):  # MAE's mask is its decoder's
        heads |= {key: plain for key, plain in keys.items() if plain == "mask_token"}
        keys = {key: plain for key, plain in keys.items() if plain != "mask_token"}
    return keys, heads


def is_head(plain: str) -> bool:
    """Whether a key of an unwrapped model is a head's, or of what only training needs."""
    return _HEADS.match(plain) is not None


def is_record(key: object) -> bool:
    """Whether a key is that of a layer's record (:mod:`attn_plugins.record`)."""
    return isinstance(key, str) and (key == RECORD or key.endswith("." + RECORD))


def flat_key(key: str) -> str:
    """A key as a plain block list would have it: `blocks.1.7.norm1.weight` → `blocks.7.norm1.weight`.

    DINOv2 pads each chunk with identities so that the second number is the block's own index.
    """
    return _CHUNKED.sub(r"blocks.\2.", _unwrapped(key))


def shape_of(state: Mapping[str, Any], keys: Mapping[str, str], heads: Mapping[str, str] | None = None) -> Shape:
    """Read the architecture off the tensors.

    Args:
        state: the state dict that holds them.
        keys: `backbone_keys` of it.
        heads: the keys of its heads.

    Raises:
        CheckpointError: a tensor has a shape that none of its name has.
    """
    tensors: dict[str, Tensor] = {plain: state[key] for key, plain in keys.items()}
    stem = next(name for name in _STEMS if name in tensors)
    embed_dim, _, patch_size, _ = _dims(tensors, stem, 4)
    blocks = {int(match[1]) for match in map(_BLOCK.match, tensors) if match}
    depth = len(blocks)
    problem = None
    if not any(name in tensors for name in _CLS) or blocks != set(range(depth)) or not blocks:
        problem = f"not a Vision Transformer with a [CLS] token: blocks {sorted(blocks)}, keys {_some(tensors)}"
    registers = next((_dims(tensors, name, 3)[1] for name in _REGISTERS if name in tensors), 0)
    architecture, num_heads = _ARCHITECTURES.get(
        (embed_dim, depth), (f"vit(embed_dim={embed_dim}, depth={depth})", None)
    )
    chunks = {match[1] for match in map(_CHUNKED.search, map(_unwrapped, keys)) if match}
    grid = square_grid(tensors)
    return Shape(
        codebase=_codebase(tensors, stem, set((heads or {}).values())),
        architecture=architecture,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        patch_size=patch_size,
        grid=grid[0] if grid else None,
        positions=_positions(tensors),
        registers=registers,
        ffn="mlp" if any(name.endswith("0.mlp.fc1.weight") for name in tensors) else "swiglu",
        layer_scale="blocks.0.ls1.gamma" in tensors,
        chunks=len(chunks),
        problem=problem,
    )


def square_grid(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(G, P) of a position embedding `[1, P + G², D]`, P positions of prefix tokens; None if it is none, or unclear.

    How many prefix tokens have a position is told by the other tokens: DeiT's distillation token has one, timm's
    registers come with positions for patches alone. Without either [CLS] has one; 25 positions are then 4 x 6 patches
    and [CLS] or, in a model that gives [CLS] none, 5 x 5: unclear.
    """
    tokens = _positions(tensors)
    if tokens is None:
        return None
    if "reg_token" in tensors:
        prefixes = [0, 1 + _dims(tensors, "reg_token", 3)[1]]
    else:
        prefixes = [2 if "dist_token" in tensors else 1]
    for prefix in prefixes:
        side = math.isqrt(max(tokens - prefix, 0))
        if side and side * side == tokens - prefix:
            return side, prefix
    return None


def _positions(tensors: Mapping[str, Tensor]) -> int | None:
    for name in ("pos_embed", "embeddings.position_embeddings"):
        if name in tensors:
            return _dims(tensors, name, 3)[1]
    return None


def _dims(tensors: Mapping[str, Tensor], name: str, count: int) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None or tensor.layout != torch.strided or tensor.is_nested or tensor.dim() != count:
        found = "absent" if tensor is None else f"{tensor.layout}, {tensor.dim()} dimensions"
        raise CheckpointError(f"{name} is no tensor of {count} dimensions as a Vision Transformer's is: {found}")
    return tuple(tensor.shape)


def _stem(key: object) -> str | None:
    if not isinstance(key, str):
        return None
    return next((name for name in _STEMS if key == name or key.endswith("." + name)), None)


def _unwrapped(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _codebase(tensors: Mapping[str, Tensor], stem: str, heads: set[str]) -> str:
    if stem != _STEMS[0]:
        return "transformers"
    if any(name.startswith("decoder_") for name in heads):
        return "mae"
    if "pos_embed" not in tensors:
        return "dinov3"
    if "mask_token" in tensors:
        return "dinov2"
    timms = "head.weight" in heads or "reg_token" in tensors or "dist_token" in tensors
    return "timm" if timms else "dino"


def _some(keys: Iterable[str], count: int = 5) -> str:
    names = sorted(key for key in keys if PREFIX not in key)
    return ", ".join(names[:count]) + (f", … ({len(names)} in all)" if len(names) > count else "")
