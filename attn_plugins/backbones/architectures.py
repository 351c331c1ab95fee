"""From the name of an architecture to a ViT with the weights of a checkpoint, patched as it was trained."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..checkpoints import CheckpointError, CheckpointInfo, load_backbone_state
from ..patching import patch
from . import checkouts
from .positions import OfficialPositions

__all__ = ["load_backbone", "sha256_of"]

_CODEBASES = {"dino": "dinov1", "dinov2": "dinov2", "dinov3": "dinov3", "timm": "timm"}
_TIMM = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
}
_TIMM_DINOV2 = {
    "vit_small": "vit_small_patch14_{}dinov2",
    "vit_base": "vit_base_patch14_{}dinov2",
    "vit_large": "vit_large_patch14_{}dinov2",
    "vit_giant2": "vit_giant_patch14_{}dinov2",
}
_TIMM_DINOV3 = {
    "vit_small": "vit_small_patch16_dinov3_qkvb",
    "vit_base": "vit_base_patch16_dinov3_qkvb",
    "vit_large": "vit_large_patch16_dinov3_qkvb",
    "vit_huge2": "vit_huge_plus_patch16_dinov3_qkvb",
    "vit_7b": "vit_7b_patch16_dinov3",
}


def load_backbone(
    arch: str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    plugins: str = "auto",
    repo: str | os.PathLike[str] | None = None,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a ViT, patch it and load a checkpoint into it, strictly.

    Args:
        arch: `timm/NAME`, `transformers/FOLDER`, `dinov1/vit_small`, `dinov2/…`, `dinov3/…`; `auto` takes it from
            the checkpoint.
        checkpoint: the file; None for `transformers/FOLDER`, which holds its weights, or for random weights.
        plugins: a spec, or `auto` for the checkpoint's own (softmax where it says nothing).
        repo: checkout of the official repository for `dinov*/`; default `DINO_ROOT`, `DINOV2_ROOT`, `DINOV3_ROOT`.
        options: passed to the model's constructor (`img_size=`, `patch_size=`).

    Returns:
        The model in eval mode without gradients, and what identifies it: `arch`, `plugins`, `checkpoint`, `sha256`.

    Raises:
        CheckpointError: the file is not readable, or contradicts `plugins`.
        ValueError: unknown architecture, or keys that are missing, unexpected or of another shape, all listed.
    """
    state: dict[str, Tensor] = {}
    info: CheckpointInfo | None = None
    if checkpoint is not None:
        state, info = load_backbone_state(checkpoint, spec=None if plugins == "auto" else plugins)
    if info is not None and info.arch is not None and arch in ("auto", info.arch):
        arch, options = info.arch, {**info.arch_options, **options}
    arch = _resolve(arch, info, str(checkpoint))
    spec = (info.spec if info else None) or "softmax" if plugins == "auto" else plugins
    model, convert = _build(arch, info, repo, options)
    patch(model, spec)
    if info is not None:
        _load(model, convert(state), f"{checkpoint} ({info.architecture}/{info.patch_size})", arch)
    model.eval().requires_grad_(False)
    identity = {
        "arch": arch,
        "plugins": spec,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "sha256": sha256_of(Path(checkpoint)) if checkpoint else None,
    }
    return model, identity


def _resolve(arch: str, info: CheckpointInfo | None, path: str) -> str:
    if arch != "auto":
        return arch
    if info is None:
        raise ValueError(
            "arch='auto' takes the architecture from a checkpoint, none was given: set checkpoint= or arch="
        )
    if info.shape.num_heads is None:
        raise ValueError(
            f"{path} holds a {info.architecture}, which has no common name: say arch='timm/NAME' "
            "(with arch_options, e.g. dict(depth=4)) as it was built"
        )
    return f"{_CODEBASES[info.codebase]}/{info.architecture}"


Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _build(
    arch: str, info: CheckpointInfo | None, repo: str | os.PathLike[str] | None, options: dict[str, Any]
) -> tuple[nn.Module, Convert]:
    """The model, and what turns the checkpoint's keys into its own."""
    family, _, name = arch.partition("/")
    if family == "transformers":
        return _from_transformers(name, options), dict
    if family == "timm":
        import timm

        if name in _TIMM:
            name = _TIMM[name]
        size = {"dynamic_img_size": True} | _size(info)
        return timm.create_model(name, pretrained=False, num_classes=0, **size | options), dict
    if family not in checkouts.ROOTS:
        raise ValueError(
            f"unknown architecture {arch!r}: use timm/NAME, transformers/FOLDER, dinov1/NAME, dinov2/NAME, dinov3/NAME"
        )
    root = checkouts.root_of(family, repo)
    if root is not None:
        return checkouts.build(family, name, root, info.shape if info else None, options), dict
    return _same_in_timm(family, name, info, options)


def _same_in_timm(
    family: str, name: str, info: CheckpointInfo | None, options: dict[str, Any]
) -> tuple[nn.Module, Convert]:
    """The official architecture built by timm; equality with the official code is tested to 1e-5."""
    import timm
    from timm.models import eva, vision_transformer

    names = {"dinov1": _TIMM, "dinov2": _TIMM_DINOV2, "dinov3": _TIMM_DINOV3}[family]
    if name not in names:
        raise ValueError(
            f"timm has no {family} {name!r}, only {', '.join(names)}; set repo= or {checkouts.ROOTS[family]}"
        )
    registers = info.registers if info else 0
    timm_name = names[name].format("reg4_" if registers else "")
    if family == "dinov3":
        rotary = timm.create_model(timm_name, num_classes=0, **options)
        return rotary, partial(eva.checkpoint_filter_fn, model=rotary)
    counted = {"reg_tokens": registers} if registers else {}
    model: Any = timm.create_model(timm_name, num_classes=0, **_size(info) | counted | options)
    model.official_positions = OfficialPositions(model, 0.0 if registers else 0.1, antialias=bool(registers))
    if family == "dinov1":
        return model, dict
    return model, partial(vision_transformer.checkpoint_filter_fn, model=model)


def _from_transformers(folder: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    if not Path(folder).is_dir():
        raise ValueError(f"transformers/{folder}: no such folder; save the model there first with save_pretrained")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, **options)
    return getattr(model, "vision_model", model)


def _size(info: CheckpointInfo | None) -> dict[str, int]:
    if info is None or info.shape.grid is None:
        return {}
    return {"patch_size": info.patch_size, "img_size": info.shape.grid * info.patch_size}


def _load(model: nn.Module, state: dict[str, Tensor], what: str, arch: str) -> None:
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{what} does not fit arch={arch!r} ({type(model).__name__}). Missing: {missing}. "
            f"Unexpected: {unexpected}. Other shapes: {shapes}."
        )
    model.load_state_dict(state)


def sha256_of(path: Path) -> str:
    """Of the file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
