"""Keys, queries and values that are convolved or pooled: CvT, PVT, MViTv2."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entries_dino import Qkv
from .entry import DIM, HEADS, SIDE, TOKENS, Normalize, Zoo, attend, merge, qkv_of, split, tokens

ZOO = Zoo()


class Cvt(nn.Module):
    """Depthwise convolutions make q, k, v; keys are strided; letters of einsum name the dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, DIM**-0.5
        self.conv_q = nn.Conv2d(DIM, DIM, 3, padding=1, groups=DIM, bias=False)
        self.conv_kv = nn.Conv2d(DIM, DIM, 3, padding=1, stride=2, groups=DIM, bias=False)
        self.proj_q, self.proj_k, self.proj_v, self.proj = (nn.Linear(DIM, DIM) for _ in range(4))
        self.attn_drop = nn.Dropout(0.0)

    def forward_conv(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grid = x.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        return self.conv_q(grid).flatten(2).transpose(1, 2), self.conv_kv(grid).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Any:
        q, kv = self.forward_conv(x)
        q, k, v = (
            p(t).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for p, t in ((self.proj_q, q), (self.proj_k, kv), (self.proj_v, kv))
        )
        attn_score = torch.einsum("bhlk,bhtk->bhlt", [q, k]) * self.scale
        attn = F.softmax(attn_score, dim=-1)
        attn = self.attn_drop(attn)
        x = torch.einsum("bhlt,bhtv->bhlv", [attn, v])
        return self.proj(x.transpose(1, 2).flatten(2))


@ZOO.add("cvt", Cvt, lambda: (tokens(scale=12.0),))
def cvt(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, kv = m.forward_conv(x)
    out = attend(normalize, split(m.proj_q(q)), split(m.proj_k(kv)), split(m.proj_v(kv)), scale=m.scale)
    return m.proj(merge(out))


class Pvt(nn.Module):
    """Keys and values of a grid that a strided convolution made smaller; forward takes the grid's size."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)
        self.sr, self.norm = nn.Conv2d(DIM, DIM, 2, stride=1), nn.LayerNorm(DIM)

    def forward(self, x: Tensor, H: int, W: int) -> Any:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        x_ = self.sr(x.permute(0, 2, 1).reshape(B, C, H, W)).reshape(B, C, -1).permute(0, 2, 1)
        kv = self.kv(self.norm(x_)).reshape(B, -1, 2, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


@ZOO.add("pvt", Pvt, lambda: (tokens(scale=8.0), SIDE, SIDE))
def pvt(m: Any, normalize: Normalize, x: Tensor, h: int, w: int) -> Any:
    small = m.norm(m.sr(x.mT.unflatten(2, (h, w))).flatten(2).mT)
    k, v = (split(part) for part in m.kv(small).chunk(2, -1))
    return m.proj(merge(attend(normalize, split(m.q(x)), k, v)))


class MVit(Qkv):
    """MViTv2: q, k, v are pooled by convolutions, relative positions come from q, and q is added to the output."""

    def __init__(self) -> None:
        super().__init__()
        d = DIM // HEADS
        self.pool_q, self.pool_k, self.pool_v = (nn.Conv2d(d, d, 3, padding=1, groups=d) for _ in range(3))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(d) for _ in range(3))
        self.rel_pos = nn.Parameter(torch.zeros(TOKENS, TOKENS, d))

    def pool(self, x: Tensor, conv: nn.Module, norm: nn.Module) -> Any:
        B, heads, N, D = x.shape
        grid = x.reshape(B * heads, SIDE, SIDE, D).permute(0, 3, 1, 2)
        return norm(conv(grid).flatten(2).transpose(1, 2).reshape(B, heads, N, D))

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(dim=0)
        q = self.pool(q, self.pool_q, self.norm_q)
        k = self.pool(k, self.pool_k, self.norm_k)
        v = self.pool(v, self.pool_v, self.norm_v)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = attn + torch.einsum("bnqd,qkd->bnqk", q, self.rel_pos)
        attn = attn.softmax(dim=-1)
        x = attn @ v
        x = x + q
        return self.proj(x.transpose(1, 2).reshape(B, N, -1)), hw_shape


@ZOO.add("mvit-v2", MVit, lambda: (tokens(), (SIDE, SIDE)))
def mvit(m: Any, normalize: Normalize, x: Tensor, hw: tuple[int, int]) -> Any:
    q, k, v = qkv_of(m.qkv(x))
    q, k, v = m.pool(q, m.pool_q, m.norm_q), m.pool(k, m.pool_k, m.norm_k), m.pool(v, m.pool_v, m.norm_v)
    bias = (q[:, :, :, None] * m.rel_pos).sum(-1)
    return m.proj(merge(attend(normalize, q, k, v, bias=bias) + q)), hw
