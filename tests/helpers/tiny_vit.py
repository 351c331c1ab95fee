"""A Vision Transformer of a hundred lines' worth in forty, as a trainer's own file would hold one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim))
        return out


class TinyViT(nn.Module):
    def __init__(self, dim: int = 16, depth: int = 2, num_heads: int = 2) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = nn.Conv2d(3, dim, 8, 8)
        self.blocks = nn.ModuleList(Attention(dim, num_heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = x + block(x)
        return x[:, 0]


class Deeper(TinyViT):
    """With a constructor of its own on top of the inherited one."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__(dim, depth=3)
        self.extra = nn.Linear(dim, dim)


class Renamed(TinyViT):
    """Without one."""
