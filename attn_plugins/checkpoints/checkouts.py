"""ViTs built by the code of an official checkout: facebookresearch/dino, dinov2, dinov3."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .layout import Shape

__all__ = ["ROOTS", "arguments_for", "build", "root_of"]

ROOTS = {"dinov1": "DINO_ROOT", "dinov2": "DINOV2_ROOT", "dinov3": "DINOV3_ROOT"}
_MODULES = {
    "dinov1": "vision_transformer",
    "dinov2": "dinov2.models.vision_transformer",
    "dinov3": "dinov3.hub.backbones",
}
_DINOV3 = {
    "vit_small": "dinov3_vits16",
    "vit_base": "dinov3_vitb16",
    "vit_large": "dinov3_vitl16",
    "vit_huge2": "dinov3_vith16plus",
    "vit_7b": "dinov3_vit7b16",
}


def root_of(codebase: str, repo: str | os.PathLike[str] | None) -> Path | None:
    """The checkout to use: `repo`, else what DINO_ROOT, DINOV2_ROOT or DINOV3_ROOT names, else None.

    Raises:
        ValueError: the folder is not that checkout.
    """
    chosen = repo or os.environ.get(ROOTS[codebase])
    if not chosen:
        return None
    root = Path(chosen).expanduser().resolve()
    file = root / (_MODULES[codebase].replace(".", "/") + ".py")
    if not file.is_file():
        raise ValueError(f"{root} is no checkout of {codebase}: {file} is missing. Set repo= or {ROOTS[codebase]}.")
    return root


def build(codebase: str, name: str, root: Path, shape: Shape | None, options: dict[str, Any]) -> nn.Module:
    """A ViT from the checkout's own code, sized as the checkpoint's tensors are.

    Args:
        codebase: `dinov1`, `dinov2` or `dinov3`.
        name: `vit_small`, `vit_base`, …
        root: the checkout.
        shape: what the checkpoint tells; None for the codebase's defaults.
        options: further arguments of its constructor; they win.

    Raises:
        ValueError: the codebase has no architecture of that name.
    """
    module = _import(codebase, root)
    factory = getattr(module, _DINOV3.get(name, name) if codebase == "dinov3" else name, None)
    if factory is None:
        raise ValueError(f"{codebase} at {root} has no architecture {name!r}")
    return factory(**arguments_for(codebase, shape, options))


def arguments_for(codebase: str, shape: Shape | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of the constructor: as the checkpoint's tensors are, and `options` over them."""
    if codebase == "dinov3":
        return {"pretrained": False, **options}
    settings: dict[str, Any] = {}
    if shape is not None and shape.grid is not None:
        settings = {"patch_size": shape.patch_size, "img_size": shape.grid * shape.patch_size}
    if codebase == "dinov1":
        if "img_size" in settings:
            settings["img_size"] = [settings["img_size"]]
        return settings | dict(options)
    # Released models with registers resample positions with antialiasing and no 0.1 offset (hub/backbones.py).
    registers = shape.registers if shape else 0
    settings |= {
        "init_values": 1.0,
        "block_chunks": 0,
        "ffn_layer": "swiglufused" if shape and shape.ffn == "swiglu" else "mlp",
        "num_register_tokens": registers,
        "interpolate_antialias": registers > 0,
        "interpolate_offset": 0.0 if registers else 0.1,
    }
    return settings | dict(options)


def _import(codebase: str, root: Path) -> ModuleType:
    # DINOv1 is a folder of scripts that import each other by bare names, so its folder has to be on the path.
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    module = importlib.import_module(_MODULES[codebase])
    origin = Path(str(module.__file__)).resolve()
    if root not in origin.parents:
        raise ValueError(
            f"{_MODULES[codebase]} was imported from {origin} before; {root} cannot be used in the same process"
        )
    return module
