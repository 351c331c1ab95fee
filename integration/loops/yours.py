"""What is yours in these loops: a model, and data. Here a small ViT, and pictures whose brighter half is the label."""

from typing import Any

import timm
import torch
from torch import Tensor


def model(num_classes: int = 2) -> Any:
    """A ViT of three blocks, from random weights."""
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **options)


def batch(number: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images `[size, 3, 32, 32]` and labels `[size]`: always the same for one number."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(2, (size,), generator=generator)
    images = torch.randn(size, 3, 32, 32, generator=generator)
    images[labels == 1, :, :, 16:] += 1
    return images, labels


class Pictures(torch.utils.data.Dataset):
    """The same, one by one."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError(index)
        images, labels = batch(index, size=1)
        return {"pixel_values": images[0], "labels": int(labels[0])}
