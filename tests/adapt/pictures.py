"""A tiny timm ViT with scores as spread as a trained one's, and a folder of pictures on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

OPTIONS: dict[str, Any] = {"depth": 4, "img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3}
ARCH = "timm/vit_tiny_patch16_224"


def vit(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model: Any = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, num_classes=0, **OPTIONS)
    for block in model.blocks:
        block.attn.qkv.weight.data.mul_(8)
    return model.eval()


def images(count: int = 4, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count + size))


def folder(path: Path, count: int = 10) -> Path:
    """Smooth random colours, each file another."""
    path.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        small = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC).save(path / f"{index}.png")
    return path
