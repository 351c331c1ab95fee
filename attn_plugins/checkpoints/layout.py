"""Which keys of a state dict are the backbone's, and what they say about its shape."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..codebases import CODEBASES, Codebase, Shape, StateDict
from ..codebases.parts import is_head
from ..record import RECORD
from ..swap import PREFIX
from ..torch_names import unwrapped
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

_CHUNKED = re.compile(r"\bblocks\.(\d+)\.(\d+)\.")
_NESTED = 3  # how deep state dicts lie in a file: {"app": {"model": {...}}}


def sections(checkpoint: Any) -> dict[str, Mapping[str, Any]]:
    """{name: mapping} of what a loaded checkpoint holds, "" for the file itself, ``app.model`` for one inside another.

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


def is_record(key: object) -> bool:
    """Whether a key is that of a layer's record (``attn_plugins.record``)."""
    return isinstance(key, str) and (key == RECORD or key.endswith("." + RECORD))


def flat_key(key: str) -> str:
    """A key as a plain block list would have it: ``blocks.1.7.norm1.weight`` → ``blocks.7.norm1.weight``.

    DINOv2 pads each chunk with identities so that the second number is the block's own index.
    """
    return _CHUNKED.sub(r"blocks.\2.", unwrapped(key))


def shape_of(state: Mapping[str, Any], keys: Mapping[str, str], heads: Mapping[str, str] | None = None) -> Shape:
    """Read the architecture off the tensors.

    Args:
        state: the state dict that holds them.
        keys: ``backbone_keys`` of it.
        heads: the keys of its heads.

    Raises:
        CheckpointError: a tensor has a shape that none of its name has.
    """
    tensors: dict[str, Tensor] = {plain: state[key] for key, plain in keys.items()}
    stem = next(name for _, names in _known() for name in names.stems if name in tensors)
    codebase, names = _codebase(tensors, stem, set((heads or {}).values()))
    embed_dim, _, patch_size, _ = _dims(tensors, stem, 4)
    blocks = {int(match[1]) for match in map(re.compile(names.block).match, tensors) if match}
    depth = len(blocks)
    problem = None
    if not any(name in tensors for name in names.cls_token) or blocks != set(range(depth)) or not blocks:
        problem = f"not a Vision Transformer with a [CLS] token: blocks {sorted(blocks)}, keys {_some(tensors)}"
    registers = next((_dims(tensors, name, 3)[1] for name in names.registers if name in tensors), 0)
    architecture, num_heads = names.architectures.get(
        (embed_dim, depth), (f"vit(embed_dim={embed_dim}, depth={depth})", None)
    )
    chunks = {match[1] for match in map(_CHUNKED.search, map(unwrapped, keys)) if match}
    grid = square_grid(tensors)
    return Shape(
        codebase=codebase.called,
        architecture=architecture,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        patch_size=patch_size,
        grid=grid[0] if grid else None,
        positions=_positions(tensors),
        registers=registers,
        ffn="mlp" if any(name.endswith(names.mlp) for name in tensors) else "swiglu",
        layer_scale=names.layer_scale in tensors,
        chunks=len(chunks),
        problem=problem,
    )


def square_grid(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(G, P) of a position embedding ``[1, P + G², D]``, P positions of prefix tokens; None if it is none, or unclear.

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
    found = next((name for _, names in _known() for name in names.positions if name in tensors), None)
    return None if found is None else _dims(tensors, found, 3)[1]


def _dims(tensors: Mapping[str, Tensor], name: str, count: int) -> tuple[int, ...]:
    tensor = tensors.get(name)
    if tensor is None or tensor.layout != torch.strided or tensor.is_nested or tensor.dim() != count:
        found = "absent" if tensor is None else f"{tensor.layout}, {tensor.dim()} dimensions"
        raise CheckpointError(f"{name} is no tensor of {count} dimensions as a Vision Transformer's is: {found}")
    return tuple(tensor.shape)


def _stem(key: object) -> str | None:
    if not isinstance(key, str):
        return None
    stems = (name for _, names in _known() for name in names.stems)
    return next((name for name in stems if key == name or key.endswith("." + name)), None)


def _known() -> list[tuple[Codebase, StateDict]]:
    """The codebases whose checkpoints are known and the names in them, the most special first."""
    return [(codebase, codebase.state) for codebase in reversed(CODEBASES.values()) if codebase.state is not None]


def _codebase(tensors: Mapping[str, Tensor], stem: str, heads: set[str]) -> tuple[Codebase, StateDict]:
    fitting = [(codebase, names) for codebase, names in _known() if stem in names.stems]
    return next((pair for pair in fitting if pair[1].is_ours(tensors, heads)), fitting[-1])


def _some(keys: Iterable[str], count: int = 5) -> str:
    names = sorted(key for key in keys if PREFIX not in key)
    return ", ".join(names[:count]) + (f", … ({len(names)} in all)" if len(names) > count else "")
