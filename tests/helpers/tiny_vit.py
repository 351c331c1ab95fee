"""The tests' Vision Transformer, as a trainer's own file would hold one; nothing in it is known by name.

What the package has to recognise by its code is another one each time, and stands where it is tested.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Three times the usual scores, so that entmax has zeros to give."""

    def __init__(self, dim: int = 16, num_heads: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, 3 * k, v, dropout_p=self.dropout if self.training else 0.0)
        result: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(dim), Attention(dim, num_heads, dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attn(self.norm(x))
        return out


class TinyViT(nn.Module):
    """Pictures ``[B, 3, H, W]`` to [CLS] and a token for each 8 by 8 pixels, ``[B, 1 + N, dim]``."""

    def __init__(self, dim: int = 16, depth: int = 2, num_heads: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = nn.Conv2d(3, dim, 8, 8)
        self.blocks = nn.ModuleList(Block(dim, num_heads, dropout) for _ in range(depth))

    def embed(self, pictures: Tensor) -> Tensor:
        tokens = self.patch_embed(pictures).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.embed(pictures)
        for block in self.blocks:
            x = block(x)
        return x


class Deeper(TinyViT):
    """With a constructor of its own on top of the inherited one."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__(dim, depth=3)
        self.extra = nn.Linear(dim, dim)


class Renamed(TinyViT):
    """Without one."""
