"""Tiny models of several codebases for the files of the last release; imported as ``attn_plugins_golden_models``.

The files name classes and functions of this module: what stands here keeps its name and its attributes.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import torch
from torch import Tensor, nn

SIZE, PATCH, WIDTH, DEPTH, HEADS = 16, 8, 12, 2, 2
ARCH = "timm/vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "mlp_ratio": 1}


class Attention(nn.Module):
    """Attention as people write it: two products and a softmax between."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """``x: [B, N, C]`` to ``[B, N, C]``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        out: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return out


class Plain(nn.Module):
    """Patches, and two residual attention layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.layers = nn.ModuleList([Attention(), Attention()])

    def forward(self, x: Tensor) -> Tensor:
        """``x: [B, 3, H, W]`` to ``[B, N, C]``."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        out: Tensor = tokens
        return out


class Encoder(nn.Module):
    """Patches, and torch's own encoder layers: ``nn.MultiheadAttention``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, WIDTH, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, DEPTH)

    def forward(self, x: Tensor) -> Tensor:
        """``x: [B, 3, H, W]`` to ``[B, N, C]``."""
        out: Tensor = self.encoder(self.embed(x).flatten(2).transpose(1, 2))
        return out


def timm() -> nn.Module:
    """timm's ViT; options are those of :data:`OPTIONS`."""
    from timm import create_model

    return create_model(ARCH.removeprefix("timm/"), num_classes=0, **OPTIONS)


def dinov1() -> nn.Module:
    """The official DINOv1, from the checkout that DINO_ROOT names."""
    root = os.environ["DINO_ROOT"]
    if root not in sys.path:
        sys.path.insert(0, root)
    module = importlib.import_module("vision_transformer")
    out: nn.Module = module.VisionTransformer([SIZE], PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=1)
    return out


def dinov2() -> nn.Module:
    """lightly-train's DINOv2."""
    name = "lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer"
    vit = importlib.import_module(name).DinoVisionTransformer
    sizes: dict[str, Any] = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 1}
    out: nn.Module = vit(SIZE, PATCH, init_values=1.0, block_chunks=0, **sizes)
    return out


def hf_vit() -> nn.Module:
    """transformers' ViT."""
    from transformers import ViTConfig, ViTModel

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": WIDTH,
    }
    return ViTModel(ViTConfig(image_size=SIZE, patch_size=PATCH, **sizes), add_pooling_layer=False)


# name: (constructor, spec, layers); one file each
WHOLE: dict[str, tuple[Any, str, Any]] = {
    "timm-alpha-registers": (timm, "entmax_alpha+registers:num=2", None),
    "timm-specialization": (timm, "specialization", None),
    "timm-gated-cb_s": (timm, "entmax15+gated+cb_s", None),
    "timm-last_vit": (timm, "entmax:alpha=1.3+last_vit", [1]),
    "plain": (Plain, "sparsemax", None),
    "encoder": (Encoder, "entmax15", [1]),
    "dinov1": (dinov1, "entmax15+registers:num=1+context_broadcasting", None),
    "dinov2": (dinov2, "entmax15+registers:num=1+gated", None),
    "hf_vit": (hf_vit, "entmax_alpha+registers:num=1", None),
}


def trained(model: nn.Module) -> nn.Module:
    """The model in eval mode with every parameter drawn anew, as if trained; of few values, so that files are small."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).mul(4).round() / 10
    return model.eval()


def images() -> Tensor:
    """``[2, 3, 16, 16]``."""
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9))


def output(model: nn.Module) -> Tensor:
    """What is compared: a model's only or first output for :func:`images`."""
    with torch.no_grad():
        found: Any = model(images())
    return found if isinstance(found, Tensor) else found[0]
