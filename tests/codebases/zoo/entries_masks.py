"""EVA, BEiT, CLIP forks, pi3 and ml-4m: biases of q and v, rotation, relative positions, masks in their own sense.

Most of them have a branch for xformers that is off.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entries_dino import Qkv
from .entry import DIM, HEADS, SIDE, TOKENS, Normalize, Zoo, attend, merge, one, qkv_of, rope, split, tokens

ZOO = Zoo()

XFORMERS = False
FUTURE = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)


def memory_efficient_attention(*args: Any, **kwargs: Any) -> Tensor:
    """Stands for xformers', which cannot be imported."""
    raise RuntimeError("xformers is not installed")


def relative_index() -> Tensor:
    """[N, N] -> row of the table of (2 side - 1)^2 offsets."""
    place = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")).flatten(1)
    offset = place[:, :, None] - place[:, None] + SIDE - 1
    return offset[0] * (2 * SIDE - 1) + offset[1]


class Eva02(nn.Module):
    """Separate projections, biases for q and v only, RoPE, a shared relative bias, a norm before the projection."""

    relative_position_index: Tensor

    def __init__(self, xattn: bool = False) -> None:
        super().__init__()
        self.num_heads, self.scale, self.xattn = HEADS, (DIM // HEADS) ** -0.5, xattn
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(DIM)), nn.Parameter(torch.zeros(DIM))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * SIDE - 1) ** 2, HEADS))
        self.register_buffer("relative_position_index", relative_index())
        self.inner_attn_ln = nn.LayerNorm(DIM)
        self.proj = nn.Linear(DIM, DIM)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x: Tensor, rel_pos_bias: Tensor | None = None, attn_mask: Tensor | None = None) -> Any:
        B, N, _ = x.shape
        q = F.linear(x, self.q_proj.weight, self.q_bias).reshape(B, N, self.num_heads, -1).permute(0, 2, 1, 3)
        k = F.linear(x, self.k_proj.weight, None).reshape(B, N, self.num_heads, -1).permute(0, 2, 1, 3)
        v = F.linear(x, self.v_proj.weight, self.v_bias).reshape(B, N, self.num_heads, -1).permute(0, 2, 1, 3)
        q, k = rope(q).type_as(v), rope(k).type_as(v)
        if self.xattn:
            q, k, v = (t.permute(0, 2, 1, 3) for t in (q, k, v))
            x = memory_efficient_attention(q, k, v, p=0.0, scale=self.scale).reshape(B, N, -1)
        else:
            q = q * self.scale
            attn = q @ k.transpose(-2, -1)
            table = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(N, N, -1)
            attn = attn + table.permute(2, 0, 1).contiguous().unsqueeze(0).type_as(attn)
            if rel_pos_bias is not None:
                attn = attn + rel_pos_bias.type_as(attn)
            if attn_mask is not None:
                attn = attn.masked_fill(~attn_mask.bool()[:, None, None, :], float("-inf"))
            attn = self.attn_drop(attn.softmax(dim=-1))
            x = (attn @ v).transpose(1, 2).reshape(B, N, -1)
        return self.proj_drop(self.proj(self.inner_attn_ln(x)))


def eva_inputs() -> tuple[Any, ...]:
    return tokens(), torch.randn(HEADS, TOKENS, TOKENS), (torch.arange(TOKENS) != 4).expand(2, -1)


@ZOO.add("eva-02", Eva02, eva_inputs)
def eva02(m: Any, normalize: Normalize, x: Tensor, shared: Tensor, keep: Tensor) -> Any:
    q, k, v = split(m.q_proj(x) + m.q_bias), split(m.k_proj(x)), split(m.v_proj(x) + m.v_bias)
    bias = m.relative_position_bias_table[m.relative_position_index].permute(2, 0, 1) + shared
    bias = bias + torch.where(keep, 0.0, -1e9)[:, None, None]
    return m.proj(m.inner_attn_ln(merge(attend(normalize, rope(q), rope(k), v, bias=bias))))


class EvaClip(Qkv):
    """A joint qkv without bias of its own, norms of q and k over all heads, an xformers branch that is off."""

    def __init__(self) -> None:
        super().__init__(bias=False)
        self.q_norm, self.k_norm = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.use_xformers = False

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Any:
        B, N, C = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = 2 * self.q_norm(q), self.k_norm(k)
        if self.use_xformers:
            q, k, v = (t.reshape(B, N, self.num_heads, -1) for t in (q, k, v))
            x = memory_efficient_attention(q, k, v, attn_bias=attn_mask, scale=self.scale).reshape(B, N, C)
            return self.proj(x)
        q, k, v = (t.reshape(B, N, self.num_heads, -1).transpose(1, 2) for t in (q, k, v))
        attn = self.scale * q @ k.transpose(-1, -2)
        if attn_mask is not None:
            attn += attn_mask
        attn = F.softmax(attn, dim=-1, dtype=torch.float32).to(v.dtype)
        return self.proj((attn @ v).transpose(1, 2).flatten(2))


@ZOO.add("eva-clip", EvaClip, lambda: (tokens(), torch.where(FUTURE, -1e9, 0.0)))
def eva_clip(m: Any, normalize: Normalize, x: Tensor, mask: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    return m.proj(merge(attend(normalize, split(2 * m.q_norm(q)), split(m.k_norm(k)), split(v), bias=mask)))


class Ml4m(Qkv):
    """mask [B, N, N] is True where a token may NOT look."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if XFORMERS:
            x = memory_efficient_attention(q, k, v, attn_bias=mask)
        attn = q @ k.transpose(-2, -1) * self.scale
        if mask is not None:
            attn = attn.masked_fill(mask.unsqueeze(1), -1e30)
        attn = self.attn_drop(attn.softmax(-1))
        return self.proj(attn.matmul(v).transpose(1, 2).reshape(B, N, C))


@ZOO.add("ml-4m", Ml4m, lambda: (tokens(), FUTURE.expand(2, -1, -1)))
def ml4m(m: Any, normalize: Normalize, x: Tensor, mask: Tensor) -> Any:
    q, k, v = qkv_of(m.qkv(x))
    return m.proj(merge(attend(normalize, q, k, v, bias=torch.where(mask, -1e9, 0.0)[:, None])))


class Pi3(Qkv):
    """Norms of q and k per head, rotation by positions that are an argument, a bool mask that is True = masked."""

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = nn.LayerNorm(DIM // HEADS), nn.LayerNorm(DIM // HEADS)

    def forward(self, x: Tensor, attn_bias: Tensor | None = None, xpos: Any = None) -> Any:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).transpose(1, 3)
        q, k, v = (qkv[:, :, i] for i in range(3))
        q, k = 2 * self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if xpos is not None:
            q, k = xpos(q), xpos(k)
        if XFORMERS:
            return self.proj(memory_efficient_attention(q, k, v, attn_bias=attn_bias))
        attn = (q @ k.transpose(-2, -1)) * self.scale
        if attn_bias is not None:
            attn = attn.masked_fill(attn_bias, torch.finfo(attn.dtype).min)
        x = (self.attn_drop(attn.softmax(-1)) @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj_drop(self.proj(x))


@ZOO.add("pi3", Pi3, lambda: (tokens(), FUTURE[None, None], rope))
def pi3(m: Any, normalize: Normalize, x: Tensor, mask: Tensor, xpos: Any) -> Any:
    q, k, v = qkv_of(m.qkv(x))
    q, k = rope(2 * m.q_norm(q)), rope(m.k_norm(k))
    return m.proj(merge(attend(normalize, q, k, v, bias=torch.where(mask, -1e9, 0.0))))


class Beit(Qkv):
    """One weight for qkv with a bias made of q's and v's, and the model's relative bias on top of the layer's."""

    relative_position_index: Tensor

    def __init__(self) -> None:
        super().__init__(bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(DIM)), nn.Parameter(torch.zeros(DIM))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * SIDE - 1) ** 2, HEADS))
        self.register_buffer("relative_position_index", relative_index())

    def forward(self, x: Tensor, rel_pos_bias: Tensor | None = None) -> Any:
        B, N, _ = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        qkv = F.linear(input=x, weight=self.qkv.weight, bias=bias)
        qkv = qkv.reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        q = q * self.scale
        attn = q @ k.transpose(-2, -1)
        table = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(N, N, -1)
        attn = attn + table.permute(2, 0, 1).contiguous().unsqueeze(0)
        if rel_pos_bias is not None:
            attn = attn + rel_pos_bias
        attn = attn.softmax(dim=-1)
        attn = self.attn_drop(attn)
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).reshape(B, N, -1)))


@ZOO.add("beit", Beit, lambda: (tokens(), torch.randn(HEADS, TOKENS, TOKENS)))
def beit(m: Any, normalize: Normalize, x: Tensor, shared: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    bias = m.relative_position_bias_table[m.relative_position_index].permute(2, 0, 1) + shared
    return m.proj(merge(attend(normalize, split(q + m.q_bias), split(k), split(v + m.v_bias), bias=bias)))


class Sparsh(Qkv):
    """Without xformers, or where the map is asked for, the scores are written out."""

    def forward(self, x: Tensor, attn_bias: Tensor | None = None, return_attn: bool = False) -> Any:
        if not XFORMERS or return_attn:
            B, N, C = x.shape
            q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            scores = torch.matmul(self.scale * q, k.mT)
            weights = torch.softmax(scores if attn_bias is None else scores + attn_bias, dim=-1)
            x = self.proj(torch.matmul(self.attn_drop(weights), v).transpose(1, 2).reshape(B, N, C))
            return (x, weights) if return_attn else x
        return self.proj(memory_efficient_attention(self.qkv(x), attn_bias=attn_bias))


@ZOO.add("sparsh", Sparsh, lambda: (tokens(), torch.randn(TOKENS, TOKENS), True))
def sparsh(m: Any, normalize: Normalize, x: Tensor, bias: Tensor, flag: bool) -> Any:
    q, k, v = qkv_of(m.qkv(x))
    weights = normalize(m.scale * q @ k.mT + bias)
    return m.proj(merge(weights @ v)), weights


class FusedOrNot(Qkv):
    """timm: SDPA or the written-out product, by a flag of the instance."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused_attn = fused

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Any:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=0.0)
        else:
            q = q * self.scale
            attn = q @ k.transpose(-2, -1)
            attn = attn.softmax(dim=-1)
            x = self.attn_drop(attn) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


@ZOO.add("timm fused", lambda: FusedOrNot(True), one)
def timm_fused(m: Any, normalize: Normalize, x: Tensor) -> Any:
    return m.proj(merge(attend(normalize, *qkv_of(m.qkv(x)))))


ZOO.add("timm not fused", lambda: FusedOrNot(False), one)(timm_fused)


@ZOO.add("timm fused, masked", lambda: FusedOrNot(True), lambda: (tokens(), ~FUTURE))
def timm_masked(m: Any, normalize: Normalize, x: Tensor, keep: Tensor) -> Any:
    return m.proj(merge(attend(normalize, *qkv_of(m.qkv(x)), bias=torch.where(keep, 0.0, -1e9))))
