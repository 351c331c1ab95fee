"""Load a checkpoint's backbone, with its own attention or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..patching.record import spec_of
from .errors import CheckpointError
from .identity import CheckpointInfo, agree, identify_loaded
from .layout import flat_key, grid_side
from .reading import read

__all__ = ["load_backbone", "load_backbone_state", "resize_pos_embed"]


def load_backbone_state(
    path: str | os.PathLike[str], *, spec: str | None = None, key: str | None = None
) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """The backbone's tensors under the names of an unwrapped, unchunked model, on the CPU, and what they are.

    Args:
        path: the file; see `identify` for what is read.
        spec: the plugin spec that the caller is going to use; None for "whatever the file says".
        key: `teacher` or `student`, where the file holds both and the teacher is not what is wanted.

    Raises:
        CheckpointError: as `identify`, or `spec` contradicts the file.
    """
    checkpoint = read(path)
    info = identify_loaded(checkpoint, Path(path), key)
    agree(info.spec, spec, str(path))
    state: Mapping[str, Any] = checkpoint[info.section] if info.section else checkpoint
    return {plain: state[stored].detach() for stored, plain in info.keys.items()}, info


def load_backbone(model: nn.Module, path: str | os.PathLike[str], *, key: str | None = None) -> CheckpointInfo:
    """Fill `model` from a checkpoint: every parameter of it, or an error and nothing changed.

    Block chunks are rearranged to the model's own and a position embedding of another grid is resized
    (bicubic). The model must be patched with the spec that the file was trained with.

    Args:
        model: a ViT backbone, without its DDP or FSDP wrapper.
        path: the file.
        key: as in `load_backbone_state`.

    Returns:
        What was loaded.

    Raises:
        CheckpointError: as `load_backbone_state`; the model is patched with another spec than the file's; or
            keys
            are missing, unexpected or of another shape: all of them are listed.
    """
    state, info = load_backbone_state(path, spec=spec_of(model) or "softmax", key=key)
    own = model.state_dict()
    renamed = {flat_key(name): name for name in own}
    adapted = {renamed.get(name, name): tensor for name, tensor in state.items()}
    if "pos_embed" in own and "pos_embed" in adapted:
        adapted["pos_embed"] = resize_pos_embed(adapted["pos_embed"], own["pos_embed"])
    missing = sorted(own.keys() - adapted.keys() - {name for name in own if name.startswith("head.")})
    unexpected = sorted(adapted.keys() - own.keys())
    shapes = [
        f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}"
        for name, tensor in adapted.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{path} ({info.architecture}/{info.patch_size}) does not fit {type(model).__name__}. "
            f"Missing: {missing}. Unexpected: {unexpected}. Other shapes: {shapes}."
        )
    model.load_state_dict(adapted, strict=False)
    return info


def resize_pos_embed(source: Tensor, target: Tensor) -> Tensor:
    """source: [1, P + G², D], target: [1, P + H², D] → source on the target's grid, prefix positions untouched."""
    if source.shape == target.shape:
        return source
    (side, prefix), (wanted, wanted_prefix) = grid_side(source), grid_side(target)
    if prefix != wanted_prefix or source.shape[-1] != target.shape[-1]:
        return source  # not a matter of size: reported with the other shapes
    grid = source[:, prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(source.dtype)
    return torch.cat([source[:, :prefix], patches], dim=1)
