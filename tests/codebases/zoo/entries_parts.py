"""Softmax and products that are called by way of something else: a container, another package's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .entries_spelling import Spelled, spelled
from .entry import Zoo, one

ZOO = Zoo()


class SoftmaxAndDropout(Spelled):
    """MaxViT and SepViT of vit-pytorch, and many ViTs written after them."""

    def __init__(self, *after: nn.Module) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.Softmax(dim=-1), *after)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(self.attend(q @ k.mT) @ v)


ZOO.add("softmax and dropout in a Sequential", lambda: SoftmaxAndDropout(nn.Dropout(0.0)), one)(spelled)
ZOO.add("softmax in Sequentials", lambda: SoftmaxAndDropout(nn.Sequential(nn.Identity())), one)(spelled)


def named_einsum(package: str) -> Callable[..., Tensor]:
    """Another package's function on named dimensions, as einops has it: tensors first, names with spaces between."""

    def einsum(*tensors_and_pattern: Any) -> Tensor:
        *tensors, pattern = tensors_and_pattern
        names = sorted(set(pattern.replace("->", " ").replace(",", " ").split()))
        for letter, name in zip("abcdefghijklm", names, strict=False):
            pattern = " ".join(letter if word == name else word for word in pattern.replace(",", " , ").split())
        return torch.einsum(pattern.replace(" ", ""), *tensors)

    einsum.__module__ = package
    return einsum


einsum = named_einsum("einops.einops")


class NamedDimensions(Spelled):
    """Perceiver, LookViT: einops.einsum."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        scores = einsum(q, k, "B H Q D, B H K D -> B H Q K")
        return self.join(einsum(scores.softmax(dim=-1), v, "B H Q K, B H K D -> B H Q D"))


ZOO.add("einsum of another package", NamedDimensions, one)(spelled)


class Processor:
    """diffusers: the attention is computed by an object that is no module."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(dim=-1) @ v


class Processed(Spelled):
    def __init__(self) -> None:
        super().__init__()
        self.processor = Processor()

    def forward(self, x: Tensor) -> Any:
        return self.join(self.processor(*self.qkv(x)))


ZOO.add("attention in an object that is called", Processed, one)(spelled)
