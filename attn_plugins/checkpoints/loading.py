"""Load a checkpoint's backbone, with its own attention or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..mechanisms.registers import decided
from ..patching.record import same_model, spec_of
from .errors import CheckpointError
from .identity import CheckpointInfo, identify_loaded
from .layout import flat_key, is_record, sections, square_grid
from .reading import read
from .told import agree, told

__all__ = ["backbone_and_heads", "load_backbone", "load_backbone_state", "misfit", "resize_pos_embed"]


def load_backbone_state(
    path: str | os.PathLike[str], *, spec: str | None = None, key: str | None = None
) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """The backbone's tensors under the names of an unwrapped, unchunked model, on the CPU, and what they are.

    Args:
        path: the file or folder; see ``identify`` for what is read.
        spec: the plugin spec that the caller is going to use; None for "whatever the file says".
        key: ``teacher`` or ``student``, where the file holds both and the teacher is not what is wanted.

    Raises:
        CheckpointError: as ``identify``, or ``spec`` contradicts the file.
    """
    state, _, info = backbone_and_heads(path, key)
    if info.shape.problem:
        raise CheckpointError(f"{path}: {info.shape.problem}")
    agree(info.spec, spec, str(path))
    return state, info


def backbone_and_heads(
    path: str | os.PathLike[str], key: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], CheckpointInfo]:
    """The backbone's tensors, those of its heads, and what they are, also where that is no ViT known here."""
    checkpoint = read(path)
    info = identify_loaded(checkpoint, Path(path), key)
    state: Mapping[str, Any] = sections(checkpoint)[info.section]
    for names in (info.keys, info.heads):
        if len(set(names.values())) < len(names):
            raise CheckpointError(f"{path}: two of its tensors are one of the backbone's: {sorted(names)[:4]} ...")
    keys, heads = ({plain: state[stored].detach() for stored, plain in n.items()} for n in (info.keys, info.heads))
    return keys, heads, info


def load_backbone(model: nn.Module, path: str | os.PathLike[str], *, key: str | None = None) -> CheckpointInfo:
    """Fill ``model`` from a checkpoint: every parameter of it, or an error and nothing changed.

    Block chunks are rearranged to the model's own and a position embedding of another grid is resized
    (bicubic). The model must be patched with the spec that the file was trained with.

    Args:
        model: a ViT backbone, without its DDP or FSDP wrapper.
        path: the file.
        key: as in ``load_backbone_state``.

    Returns:
        What was loaded.

    Raises:
        CheckpointError: as ``load_backbone_state``; the model is patched with another spec than the file's; or
            keys
            are missing, unexpected or of another shape: all of them are listed.
    """
    state, info = load_backbone_state(path, spec=spec_of(model) or "softmax", key=key)
    own = model.state_dict()
    ours = told({}, [("", own)], type(model).__name__).layers
    told_of = {**ours, **info.layers} if info.layers and ours else {}
    differing = sorted(layer for layer in told_of if not same_model(ours.get(layer, ""), info.layers.get(layer, "")))
    if differing:
        raise CheckpointError(
            f"{path} records other plugins than the {type(model).__name__} has in the layers {differing}: "
            f"{[info.layers.get(layer) for layer in differing]} for {[ours.get(layer) for layer in differing]}"
        )
    renamed = {decided(flat_key(name)): name for name in own}
    adapted = {renamed.get(decided(name), name): tensor for name, tensor in state.items()}
    if "pos_embed" in own and "pos_embed" in adapted:
        adapted["pos_embed"] = resize_pos_embed(state, own)
    wrong = misfit(adapted, {name: tensor for name, tensor in own.items() if not name.startswith("head.")})
    if wrong:
        raise CheckpointError(
            f"{path} ({info.architecture}/{info.patch_size}) does not fit {type(model).__name__}. {wrong}"
        )
    model.load_state_dict(adapted, strict=False)
    return info


def misfit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What keeps tensors from being loaded into a model, all of it, or nothing; records are compared elsewhere.

    Args:
        state: the tensors.
        own: the model's state dict.
    """
    missing = sorted(name for name in own.keys() - state.keys() if not is_record(name))
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if not (missing or unexpected or shapes):
        return ""
    grid = " Positions of a grid that is not square cannot be resized: give img_size as it was trained, or resize them."
    odd = "pos_embed" in state and any(text.startswith("pos_embed ") for text in shapes) and square_grid(state) is None
    return f"Missing: {missing}. Unexpected: {unexpected}. Other shapes: {shapes}.{grid if odd else ''}"


def resize_pos_embed(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """The position embedding [1, P + G², D] of one state dict on the grid of another's, [1, P + H², D].

    One that is no square grid, or has another prefix or width, is returned as it is: its shape tells.
    """
    embedding, wanted = source["pos_embed"], target["pos_embed"]
    found, goal = square_grid(source), square_grid(target)
    if embedding.shape == wanted.shape or found is None or goal is None:
        return embedding
    (side, prefix), (goal_side, goal_prefix) = found, goal
    if prefix != goal_prefix or embedding.shape[-1] != wanted.shape[-1]:
        return embedding
    grid = embedding[:, prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(goal_side, goal_side), mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(embedding.dtype)
    return torch.cat([embedding[:, :prefix], patches], dim=1)
