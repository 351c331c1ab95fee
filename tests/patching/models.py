"""Small models for the tests of ``patch``, and what a model is: every module's class, attributes and values."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention", "TinyViT", "images", "snapshot"]

DIM, HEADS, TOKENS = 32, 4, 9


class Attention(nn.Module):
    """Attention as people write it today; nothing in it is known by name."""

    def __init__(self, dim: int = DIM, num_heads: int = HEADS, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, 3 * k, v, dropout_p=self.dropout if self.training else 0.0)
        result: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.attn = Attention(dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attn(self.norm(x))
        return out


class TinyViT(nn.Module):
    """Takes tokens ``[B, N, 32]``; gives ``[B, N, 32]``."""

    def __init__(self, depth: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(DIM)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


def images(count: int = 3) -> Tensor:
    return torch.randn(count, TOKENS, DIM, generator=torch.Generator().manual_seed(1))


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
