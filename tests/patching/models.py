"""A small model for the tests of ``patch``, and what a model is: every module's class, attributes and values."""

from __future__ import annotations

import copy
from typing import Any

import torch
from helpers.tiny_vit import TinyViT
from torch import Tensor, nn

__all__ = ["images", "snapshot", "tiny_vit"]

DIM, HEADS = 32, 4


def tiny_vit(depth: int = 4, dropout: float = 0.0) -> TinyViT:
    """Every time the same weights."""
    torch.manual_seed(0)
    return TinyViT(DIM, depth, HEADS, dropout).eval()


def images(count: int = 3) -> Tensor:
    """``[count, 3, 16, 32]``, of nine tokens with [CLS]."""
    return torch.randn(count, 3, 16, 32, generator=torch.Generator().manual_seed(1))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Class and attributes of every module, to be compared by ``==`` with a later snapshot."""
    return {name: (type(module), _plain(vars(module))) for name, module in model.named_modules()}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return type(value), value.requires_grad, value.dtype, value.tolist() if not value.is_meta else value.shape
    if isinstance(value, nn.Module):
        return type(value), id(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "hook"):  # torch's wrapper of a hook
        return value.hook
    return copy.copy(value)
