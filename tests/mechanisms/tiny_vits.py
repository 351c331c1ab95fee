"""Tiny ViTs of every codebase, with weights as if trained, and their outputs: patch tokens and [CLS].

What builds one is typed as Any: what a ViT calls its parts is up to its codebase, whose classes say no types.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

SIZE, PATCH, WIDTH, DEPTH, HEADS = 32, 8, 48, 3, 3

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Family:
    """How one codebase builds a tiny ViT, and how its [CLS] ``[B, C]`` and patches ``[B, N, C]`` are read."""

    build: Callable[..., Any]
    read: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


def _official(root: str, module: str) -> Any:
    path = os.environ.get(root)
    if path is None:
        pytest.skip(f"{root} does not name a checkout of the official code")
    if path not in sys.path:
        sys.path.insert(0, path)
    found = importlib.import_module(module)
    place = Path(str(found.__file__)).resolve()
    assert place.is_relative_to(Path(path).resolve()), f"{module} was imported from {place} before, not from {path}"
    return found


def dinov1(**options: Any) -> Any:
    module = _official("DINO_ROOT", "vision_transformer")
    sizes = {"img_size": [SIZE], "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return module.VisionTransformer(**sizes | {"qkv_bias": True} | options)


def _dinov2(module: Any, blocks: Any, attention: Any, options: dict[str, Any]) -> Any:
    def block(*args: Any, **kwargs: Any) -> Any:
        return blocks.NestedTensorBlock(*args, attn_class=attention.MemEffAttention, **kwargs)

    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return module.DinoVisionTransformer(**sizes | {"init_values": 1.0, "block_chunks": 0, "block_fn": block} | options)


def dinov2(**options: Any) -> Any:
    names = ("models.vision_transformer", "layers.block", "layers.attention")
    module, blocks, attention = (_official("DINOV2_ROOT", f"dinov2.{name}") for name in names)
    return _dinov2(module, blocks, attention, options)


def lightly_dinov2(**options: Any) -> Any:
    names = ("models.vision_transformer", "layers.block", "layers.attention")
    source = "lightly_train._models.dinov2_vit.dinov2_vit_src"
    module, blocks, attention = (importlib.import_module(f"{source}.{name}") for name in names)
    return _dinov2(module, blocks, attention, options)


def _dinov3(module: Any, options: dict[str, Any]) -> Any:
    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    model = module.DinoVisionTransformer(**sizes | {"layerscale_init": 1.0, "pos_embed_rope_dtype": "fp32"} | options)
    model.init_weights()
    return model


def dinov3(**options: Any) -> Any:
    return _dinov3(_official("DINOV3_ROOT", "dinov3.models.vision_transformer"), options)


def lightly_dinov3(**options: Any) -> Any:
    name = "lightly_train._models.dinov3.dinov3_src.models.vision_transformer"
    return _dinov3(importlib.import_module(name), options)


def timm(**options: Any) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return VisionTransformer(**sizes | {"init_values": 1.0, "num_classes": 0} | options)


def transformers(name: str, **options: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{name}Config")(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        **options,
    )
    return getattr(transformers, f"{name}Model")(config)


def hf_vit(**options: Any) -> Any:
    return transformers("ViT", **options)


def hf_dinov2(**options: Any) -> Any:
    return transformers("Dinov2", **options)


def hf_dinov3(**options: Any) -> Any:
    return transformers("DINOv3ViT", **{"num_register_tokens": 0} | options)


def _read_dinov1(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    (tokens,) = model.get_intermediate_layers(x, 1)
    torch.testing.assert_close(model(x), tokens[:, 0])
    return tokens[:, 0], tokens[:, 1:]


def _read_dino(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    out = model.forward_features(x)
    ((patches, cls),) = model.get_intermediate_layers(x, n=1, return_class_token=True)
    torch.testing.assert_close(cls, out["x_norm_clstoken"])
    torch.testing.assert_close(patches, out["x_norm_patchtokens"])
    return cls, patches


def _read_timm(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    tokens = model.forward_features(x)
    ((patches, prefix),) = model.forward_intermediates(
        x, 1, norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    torch.testing.assert_close(tokens, torch.cat([prefix, patches], 1))
    torch.testing.assert_close(model(x), tokens[:, 0])
    return tokens[:, 0], tokens[:, model.num_prefix_tokens :]


def _read_transformers(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    tokens = model(x).last_hidden_state
    return tokens[:, 0], tokens[:, 1:]


FAMILIES = {
    "dinov1": Family(dinov1, _read_dinov1),
    "dinov2": Family(dinov2, _read_dino),
    "dinov3": Family(dinov3, _read_dino),
    "lightly-dinov2": Family(lightly_dinov2, _read_dino),
    "lightly-dinov3": Family(lightly_dinov3, _read_dino),
    "timm": Family(timm, _read_timm),
    "hf-vit": Family(hf_vit, _read_transformers),
    "hf-dinov2": Family(hf_dinov2, _read_transformers),
    "hf-dinov3": Family(hf_dinov3, _read_transformers),
}


def trained(model: M, seed: int = 0) -> M:
    """The model with every parameter drawn anew: nothing is zero, one or uniform as at initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = 1.5 * max(1, parameter.shape[1:].numel()) ** -0.5 if parameter.dim() > 1 else 0.3
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale + (parameter.dim() == 1)
    return model.eval()


def without_xformers(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """xformers has no kernels for a CPU: ask unpatched DINOv2 attention for its other path."""
    for module in model.modules():
        source = sys.modules[type(module).__module__]
        if hasattr(source, "memory_efficient_attention"):
            monkeypatch.setattr(source, "XFORMERS_AVAILABLE", False)


def images(count: int = 2, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(9))
