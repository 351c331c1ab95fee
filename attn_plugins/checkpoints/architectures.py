"""From the name of an architecture to a ViT, and to the names that fit a file's tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.positions import OfficialPositions
from ..codebases.base import PREFIX
from . import checkouts
from .layout import Shape, is_head

__all__ = ["CODEBASES", "Convert", "construct", "fitting"]

CODEBASES = {"dino": "dinov1", "dinov2": "dinov2", "dinov3": "dinov3", "timm": "timm", "mae": "timm"}
_TIMM = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "vit_huge2": "vit_huge_patch14_224",
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
# What people pre-train and timm has, by the sizes in its names.
_FITTING = (
    "vit_{}_patch16_224",
    "vit_{}_patch14_dinov2",
    "vit_{}_patch14_reg4_dinov2",
    "deit3_{}_patch16_224",
    "deit_{}_distilled_patch16_224",
    "eva02_{}_patch14_224",
    "vit_{}_patch16_dinov3_qkvb",
    "vit_{}_patch14_224",
    "deit3_{}_patch14_224",
)
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def construct(
    arch: str, shape: Shape | None, repo: str | os.PathLike[str] | None, options: Mapping[str, Any]
) -> tuple[nn.Module, Convert, dict[str, Any]]:
    """A ViT of timm or of the official code, sized as a checkpoint's tensors are.

    Args:
        arch: `timm/NAME`, `dinov1/vit_small`, `dinov2/…`, `dinov3/…`.
        shape: what the tensors tell; None for the architecture's own sizes.
        repo: checkout of the official repository; None for what the environment names, or timm's own code.
        options: further arguments of the constructor; they win.

    Returns:
        The model, what turns the checkpoint's keys into its own, and all arguments that it was built with.

    Raises:
        ValueError: unknown architecture, or one that cannot have these sizes.
    """
    family, _, name = arch.partition("/")
    if family == "timm":
        import timm

        arguments = {"dynamic_img_size": True, **_size(shape), **options}
        name = _TIMM.get(name, name)
        return timm.create_model(name, pretrained=False, num_classes=0, **arguments), dict, arguments
    if family not in checkouts.ROOTS:
        raise ValueError(
            f"unknown architecture {arch!r}: use timm/NAME, transformers/FOLDER, dinov1/NAME, dinov2/NAME, dinov3/NAME"
        )
    root = checkouts.root_of(family, repo)
    if root is not None:
        arguments = checkouts.arguments_for(family, shape, options)
        return checkouts.build(family, name, root, shape, dict(options)), dict, arguments
    return _same_in_timm(family, name, shape, options)


def _same_in_timm(
    family: str, name: str, shape: Shape | None, options: Mapping[str, Any]
) -> tuple[nn.Module, Convert, dict[str, Any]]:
    """The official architecture built by timm; equality with the official code is tested to 1e-5."""
    import timm
    from timm.models import eva, vision_transformer

    names = {"dinov1": _TIMM, "dinov2": _TIMM_DINOV2, "dinov3": _TIMM_DINOV3}[family]
    if name not in names:
        raise ValueError(
            f"timm has no {family} {name!r}, only {', '.join(names)}; set repo= or {checkouts.ROOTS[family]}"
        )
    if shape is not None and shape.grid is None and shape.positions is not None:
        raise ValueError(
            f"{family}'s code resamples positions of square grids alone, and these {shape.positions} are of none: say "
            "arch='timm/NAME' and img_size=(HEIGHT, WIDTH) in pixels"
        )
    registers = shape.registers if shape else 0
    timm_name = names[name].format("reg4_" if registers else "")
    if family == "dinov3":
        rotary = timm.create_model(timm_name, num_classes=0, **options)
        return rotary, partial(_convert, filter_fn=eva.checkpoint_filter_fn, model=rotary), dict(options)
    counted = {"reg_tokens": registers} if registers else {}
    arguments = _size(shape) | counted | dict(options)
    model: Any = timm.create_model(timm_name, num_classes=0, **arguments)
    model.official_positions = OfficialPositions(model, 0.0 if registers else 0.1, antialias=bool(registers))
    if family == "dinov1":
        return model, dict, arguments
    return model, partial(_convert, filter_fn=vision_transformer.checkpoint_filter_fn, model=model), arguments


def _convert(state: dict[str, Tensor], filter_fn: Callable[..., Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's renaming of the model's own tensors; those of plugins stay as they are."""
    own = {name: tensor for name, tensor in state.items() if PREFIX not in name}
    plugins = {name: tensor for name, tensor in state.items() if PREFIX in name}
    converted: dict[str, Tensor] = filter_fn(own, model=model)
    return converted | plugins


def _size(shape: Shape | None) -> dict[str, int]:
    if shape is None or shape.positions is None:
        return {}
    size = {} if shape.grid is None else {"img_size": shape.grid * shape.patch_size}
    return {"patch_size": shape.patch_size} | size


def fitting(tensors: Mapping[str, Tensor], shape: Shape) -> list[str]:
    """The `timm/NAME`s whose parameters have the names and shapes of a checkpoint's, position embedding aside."""
    import timm

    size = {"vit_giant2": "giant", "vit_huge2": "huge"}.get(shape.architecture, shape.architecture[len("vit_") :])
    known = set(timm.list_models())
    names = [name for name in (pattern.format(size) for pattern in _FITTING) if name in known]
    return [f"timm/{name}" for name in names if _fits(name, tensors, shape)]


def _fits(name: str, tensors: Mapping[str, Tensor], shape: Shape) -> bool:
    import timm

    size: Any = _size(shape)
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=0, **size)
    theirs = {key: tensor for key, tensor in tensors.items() if PREFIX not in key}
    own = {key: tensor for key, tensor in model.state_dict().items() if not is_head(key)}
    return own.keys() == theirs.keys() and all(
        own[key].shape == tensor.shape or key == "pos_embed" for key, tensor in theirs.items()
    )
