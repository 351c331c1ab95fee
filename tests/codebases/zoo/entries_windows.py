"""Windows, strides, pooled keys and relative positions: Swin, SAM, Hiera, LeViT, CvT, PVT, MViT, NesT, TinyViT, T2T."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entries_dino import Qkv
from .entries_masks import relative_index
from .entry import DIM, HEADS, SIDE, TOKENS, Normalize, Zoo, attend, merge, one, qkv_of, split, tokens

ZOO = Zoo()

WINDOWS = 2
SHIFTED = torch.zeros(WINDOWS, TOKENS, TOKENS)
SHIFTED[1, :6, 6:] = SHIFTED[1, 6:, :6] = -100.0


class Swin(Qkv):
    """x: [windows * B, N, C], a table of biases, and a mask [windows, N, N] for shifted windows."""

    relative_position_index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * SIDE - 1) ** 2, HEADS))
        self.register_buffer("relative_position_index", relative_index())
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        B_, N, C = x.shape
        qkv = self.qkv(x).reshape(B_, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q = q * self.scale
        attn = q @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(N, N, -1)
        attn = attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            nW = mask.shape[0]
            attn = attn.view(B_ // nW, nW, self.num_heads, N, N) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.num_heads, N, N)
            attn = self.softmax(attn)
        else:
            attn = self.softmax(attn)
        attn = self.attn_drop(attn)
        x = (attn @ v).transpose(1, 2).reshape(B_, N, C)
        return self.proj_drop(self.proj(x))


@ZOO.add("swin", Swin, lambda: (tokens(2 * WINDOWS, TOKENS, DIM), SHIFTED))
def swin(m: Any, normalize: Normalize, x: Tensor, mask: Tensor) -> Any:
    bias = m.relative_position_bias_table[m.relative_position_index].permute(2, 0, 1)
    bias = bias + mask.repeat(2, 1, 1)[:, None]
    return m.proj(merge(attend(normalize, *qkv_of(m.qkv(x)), bias=bias)))


class SwinV2(Qkv):
    """Cosine attention with a clamped scale per head and biases from an MLP through a sigmoid."""

    relative_position_index: Tensor
    coords: Tensor

    def __init__(self) -> None:
        super().__init__(bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(DIM)), nn.Parameter(torch.zeros(DIM))
        self.logit_scale = nn.Parameter(torch.log(torch.tensor([5.0, 10.0, 200.0])).view(HEADS, 1, 1))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 16), nn.ReLU(inplace=True), nn.Linear(16, HEADS, bias=False))
        self.register_buffer("coords", torch.randn((2 * SIDE - 1) ** 2, 2))
        self.register_buffer("relative_position_index", relative_index())
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        B, N, C = x.shape
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, qkv_bias).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attn = attn * torch.clamp(self.logit_scale, max=4.6052).exp()
        bias = self.cpb_mlp(self.coords).view(-1, self.num_heads)[self.relative_position_index.view(-1)]
        attn = attn + 16 * torch.sigmoid(bias.view(N, N, -1).permute(2, 0, 1).contiguous()).unsqueeze(0)
        if mask is not None:
            attn = attn.view(-1, mask.shape[0], self.num_heads, N, N) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.num_heads, N, N)
        attn = self.attn_drop(self.softmax(attn))
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


@ZOO.add("swin-v2", SwinV2, lambda: (tokens(2 * WINDOWS, TOKENS, DIM), SHIFTED))
def swin_v2(m: Any, normalize: Normalize, x: Tensor, mask: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    q, k, v = split(q + m.q_bias), split(k), split(v + m.v_bias)
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    bias = 16 * m.cpb_mlp(m.coords)[m.relative_position_index].sigmoid().permute(2, 0, 1)
    scores = q @ k.mT * m.logit_scale.clamp(max=4.6052).exp() + bias + mask.repeat(2, 1, 1)[:, None]
    return m.proj(merge(normalize(scores) @ v))


class Sam(Qkv):
    """A grid, heads folded into the batch, and two einsums of q with relative positions added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * SIDE - 1, DIM // HEADS))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * SIDE - 1, DIM // HEADS))

    def forward(self, x: Tensor) -> Any:
        B, H, W, _ = x.shape
        qkv = self.qkv(x).reshape(B, H * W, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, B * self.num_heads, H * W, -1).unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = add_decomposed_rel_pos(attn, q, self.rel_pos_h, self.rel_pos_w, H, W)
        attn = attn.softmax(dim=-1)
        x = (attn @ v).view(B, self.num_heads, H, W, -1).permute(0, 2, 3, 1, 4).reshape(B, H, W, -1)
        return self.proj(x)


def add_decomposed_rel_pos(attn: Tensor, q: Tensor, rel_h: Tensor, rel_w: Tensor, h: int, w: int) -> Tensor:
    index = torch.arange(h)[:, None] - torch.arange(h)[None] + h - 1
    r_q = q.reshape(q.shape[0], h, w, -1)
    by_row = torch.einsum("bhwc,hkc->bhwk", r_q, rel_h[index])
    by_column = torch.einsum("bhwc,wkc->bhwk", r_q, rel_w[index])
    attn = attn.view(-1, h, w, h, w) + by_row[:, :, :, :, None] + by_column[:, :, :, None, :]
    return attn.view(-1, h * w, h * w)


@ZOO.add("sam", Sam, lambda: (tokens(2, SIDE, SIDE, DIM),))
def sam(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, v = qkv_of(m.qkv(x.flatten(1, 2)))
    offset = torch.arange(SIDE)[:, None] - torch.arange(SIDE) + SIDE - 1
    row, column = torch.arange(TOKENS) // SIDE, torch.arange(TOKENS) % SIDE
    table = m.rel_pos_h[offset][row][:, row] + m.rel_pos_w[offset][column][:, column]  # [N, N, D]
    bias = (q[:, :, :, None] * table).sum(-1)
    return m.proj(merge(attend(normalize, q, k, v, bias=bias))).view_as(x)


class Hiera(nn.Module):
    """SAM2's: mask units are a dimension of their own, and queries are max-pooled within each."""

    def __init__(self, q_stride: int = 3) -> None:
        super().__init__()
        self.heads, self.q_stride = HEADS, q_stride
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Any:
        B, windows = x.shape[0], 2
        qkv = self.qkv(x).reshape(B, -1, windows, 3, self.heads, DIM // self.heads).permute(3, 0, 4, 2, 1, 5)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.q_stride > 1:
            q = q.view(B, self.heads, windows, self.q_stride, -1, DIM // self.heads).amax(dim=3)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 3).reshape(B, -1, DIM))


@ZOO.add("hiera", Hiera, lambda: (tokens(2, 12, DIM),))
def hiera(m: Any, normalize: Normalize, x: Tensor) -> Any:
    units = []
    for unit in (x[:, 0::2], x[:, 1::2]):  # the window is the faster index
        q, k, v = qkv_of(m.qkv(unit))
        q = q.unflatten(2, (m.q_stride, -1)).amax(2)
        units.append(merge(attend(normalize, q, k, v)))
    return m.proj(torch.stack(units, 2).flatten(1, 2))


class Levit(nn.Module):
    """Keys narrower than values, BatchNorm in the projections, one learned bias per offset, a strided query."""

    attention_bias_idxs: Tensor

    def __init__(self, key_dim: int = 4, value_dim: int = 8) -> None:
        super().__init__()
        self.num_heads, self.scale, self.key_dim, self.d = HEADS, key_dim**-0.5, key_dim, value_dim
        self.kv = nn.Sequential(nn.Linear(DIM, HEADS * (key_dim + value_dim)))
        self.bn = nn.BatchNorm1d(HEADS * (key_dim + value_dim))
        self.q, self.proj = nn.Linear(DIM, HEADS * key_dim), nn.Linear(HEADS * value_dim, DIM)
        self.attention_biases = nn.Parameter(torch.zeros(HEADS, (2 * SIDE - 1) ** 2))
        self.register_buffer("attention_bias_idxs", relative_index()[[0, 2, 6, 8]])

    def forward(self, x: Tensor) -> Any:
        B, N, _ = x.shape
        kv = self.bn(self.kv(x).flatten(0, 1)).view(B, N, self.num_heads, -1)
        k, v = kv.split([self.key_dim, self.d], dim=3)
        k, v = k.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3)
        sub = x.view(B, SIDE, SIDE, -1)[:, ::2, ::2].reshape(B, -1, DIM)
        q = self.q(sub).view(B, -1, self.num_heads, self.key_dim).permute(0, 2, 1, 3)
        attn = (q @ k.transpose(-2, -1)) * self.scale + self.attention_biases[:, self.attention_bias_idxs]
        attn = attn.softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(B, -1, self.num_heads * self.d)
        return self.proj(F.hardswish(x))


@ZOO.add("levit", Levit, one)
def levit(m: Any, normalize: Normalize, x: Tensor) -> Any:
    per_head = m.bn(m.kv(x).flatten(0, 1)).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
    k, v = per_head[..., : m.key_dim], per_head[..., m.key_dim :]
    q = split(m.q(x[:, [0, 2, 6, 8]]))
    return m.proj(F.hardswish(merge(attend(normalize, q, k, v, bias=m.attention_biases[:, m.attention_bias_idxs]))))


class TinyVit(nn.Module):
    """A norm inside, q k v of each head side by side, biases that are indexed in training and kept otherwise."""

    attention_bias_idxs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale, self.d = HEADS, (DIM // HEADS) ** -0.5, DIM // HEADS
        self.norm, self.qkv, self.proj = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.attention_biases = nn.Parameter(torch.zeros(HEADS, (2 * SIDE - 1) ** 2))
        self.register_buffer("attention_bias_idxs", relative_index(), persistent=False)

    def forward(self, x: Tensor) -> Any:
        B, N, _ = x.shape
        qkv = self.qkv(3 * self.norm(x))
        q, k, v = qkv.view(B, N, self.num_heads, -1).split([self.d, self.d, self.d], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3)
        bias = self.attention_biases[:, self.attention_bias_idxs]
        attn = (q @ k.transpose(-2, -1)) * self.scale + (bias if self.training else bias.clone())
        attn = attn.softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, -1))


@ZOO.add("tinyvit", TinyVit, one)
def tinyvit(m: Any, normalize: Normalize, x: Tensor) -> Any:
    bias = m.attention_biases[:, m.attention_bias_idxs]
    parts = [part.chunk(3, -1) for part in m.qkv(3 * m.norm(x)).chunk(HEADS, -1)]
    return m.proj(torch.cat([attend(normalize, q, k, v, bias=b) for (q, k, v), b in zip(parts, bias, strict=True)], -1))


class Nest(Qkv):
    """NesT: blocks are a dimension of their own, [B, T, N, C]."""

    def forward(self, x: Tensor) -> Any:
        B, T, N, C = x.shape
        qkv = self.qkv(x).reshape(B, T, N, 3, self.num_heads, C // self.num_heads).permute(3, 0, 4, 1, 2, 5)
        q, k, v = qkv.unbind(0)
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = self.attn_drop(attn.softmax(dim=-1))
        return self.proj((attn @ v).permute(0, 2, 3, 4, 1).reshape(B, T, N, C))


@ZOO.add("nest", Nest, lambda: (tokens(2, 2, TOKENS, DIM),))
def nest(m: Any, normalize: Normalize, x: Tensor) -> Any:
    out = attend(normalize, *qkv_of(m.qkv(x.flatten(0, 1))))  # [B T, heads, N, D]; channels end head-last
    return m.proj(out.permute(0, 2, 3, 1).reshape(x.shape))


class T2t(nn.Module):
    """T2T-ViT's token transformer: attention narrower than its input, and v is the shortcut."""

    def __init__(self, narrow: int = 12) -> None:
        super().__init__()
        self.num_heads, self.in_dim, self.scale = 1, narrow, DIM**-0.5
        self.qkv, self.proj = nn.Linear(DIM, 3 * narrow, bias=False), nn.Linear(narrow, narrow)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Any:
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.in_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = (attn @ v).transpose(1, 2).reshape(B, N, self.in_dim)
        return v.squeeze(1) + self.proj_drop(self.proj(x))


@ZOO.add("t2t-vit", T2t, one)
def t2t(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    return v + m.proj(attend(normalize, q, k, v, scale=m.scale))
