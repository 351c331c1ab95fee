"""torch's own attention inside other codebases: CLIP, open_clip, DETR, CoCa."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entries_cross import two
from .entry import DIM, HEADS, SIDE, TOKENS, Normalize, Zoo, attend, merge, split, tokens

ZOO = Zoo()


def packed(m: Any, normalize: Normalize, q: Tensor, k: Tensor, v: Tensor, bias: Any = 0.0) -> tuple[Tensor, Tensor]:
    """Output and per-head map of an nn.MultiheadAttention, batch first."""
    weights, biases = m.in_proj_weight.chunk(3), m.in_proj_bias.chunk(3)
    q, k, v = (split(F.linear(*parts)) for parts in zip((q, k, v), weights, biases, strict=True))
    maps = normalize((DIM // HEADS) ** -0.5 * q @ k.mT + bias)
    return m.out_proj(merge(maps @ v)), maps


class ClipBlock(nn.Module):
    """CLIP: sequence first, an additive mask kept on the block, no weights asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ln_1 = nn.MultiheadAttention(DIM, HEADS), nn.LayerNorm(DIM)
        self.register_buffer("attn_mask", torch.full((TOKENS, TOKENS), float("-inf")).triu(1))

    def attention(self, x: Tensor) -> Any:
        mask = self.attn_mask.to(dtype=x.dtype, device=x.device)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor) -> Any:
        return x + self.attention(3 * self.ln_1(x))


@ZOO.add("clip", ClipBlock, lambda: (tokens(TOKENS, 2, DIM),), sites=("attn",))
def clip(m: Any, normalize: Normalize, x: Tensor) -> Any:
    y = 3 * m.ln_1(x).transpose(0, 1)
    bias = torch.full((TOKENS, TOKENS), -1e9).triu(1)
    return x + packed(m.attn, normalize, y, y, y, bias)[0].transpose(0, 1)


class OpenClipBlock(nn.Module):
    """open_clip: batch first, k and v may be another sequence, LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_1_kv = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.gamma = nn.Parameter(torch.full((DIM,), 0.5))

    def forward(self, q_x: Tensor, kv: Tensor) -> Any:
        kv = 3 * self.ln_1_kv(kv)
        return q_x + self.gamma * self.attn(3 * self.ln_1(q_x), kv, kv, need_weights=False)[0]


@ZOO.add("open_clip", OpenClipBlock, two, sites=("attn",))
def open_clip(m: Any, normalize: Normalize, x: Tensor, y: Tensor) -> Any:
    y = 3 * m.ln_1_kv(y)
    return x + m.gamma * packed(m.attn, normalize, 3 * m.ln_1(x), y, y)[0]


class AttentionPool2d(nn.Module):
    """CLIP's ResNet head: torch's function with separate projection weights and a query made of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(TOKENS + 1, DIM))
        self.q_proj, self.k_proj, self.v_proj, self.c_proj = (nn.Linear(DIM, DIM) for _ in range(4))
        self.num_heads = HEADS

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(start_dim=2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)
        x = x + self.positional_embedding[:, None, :].to(x.dtype)
        x, _ = F.multi_head_attention_forward(
            query=x[:1],
            key=x,
            value=x,
            embed_dim_to_check=x.shape[-1],
            num_heads=self.num_heads,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            use_separate_proj_weight=True,
            training=self.training,
            need_weights=False,
        )
        return x.squeeze(0)


@ZOO.add("clip attention pool", AttentionPool2d, lambda: (tokens(2, DIM, SIDE, SIDE),), layers="attn")
def attention_pool(m: Any, normalize: Normalize, x: Tensor) -> Any:
    x = x.flatten(2).mT
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + m.positional_embedding
    q, k, v = split(m.q_proj(x[:, :1])), split(m.k_proj(x)), split(m.v_proj(x))
    return m.c_proj(merge(attend(normalize, q, k, v)))[:, 0]


class DetrLayer(nn.Module):
    """DETR's decoder layer: positions are added to q and k only, padding is masked, and the maps are returned."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.multihead_attn = nn.MultiheadAttention(DIM, HEADS), nn.MultiheadAttention(DIM, HEADS)
        self.query_pos = nn.Parameter(torch.randn(TOKENS, 1, DIM))

    def forward(self, tgt: Tensor, memory: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        q = k = tgt + self.query_pos
        tgt = tgt + self.self_attn(q, k, value=tgt)[0]
        out, weights = self.multihead_attn(tgt + self.query_pos, memory, memory, key_padding_mask=padding)
        return tgt + out, weights


def detr_inputs() -> tuple[Tensor, ...]:
    return tokens(TOKENS, 2, DIM, scale=2.0), tokens(6, 2, DIM, scale=2.0), torch.arange(12).view(2, 6) == 5


@ZOO.add("detr", DetrLayer, detr_inputs, sites=("self_attn", "multihead_attn"))
def detr(m: Any, normalize: Normalize, tgt: Tensor, memory: Tensor, padding: Tensor) -> Any:
    tgt, memory, pos = tgt.transpose(0, 1), memory.transpose(0, 1), m.query_pos.transpose(0, 1)
    tgt = tgt + packed(m.self_attn, normalize, tgt + pos, tgt + pos, tgt)[0]
    bias = torch.where(padding, -1e9, 0.0)[:, None, None]
    out, maps = packed(m.multihead_attn, normalize, tgt + pos, memory, memory, bias)
    return (tgt + out).transpose(0, 1), maps.mean(1)


class AttentionalPooler(nn.Module):
    """CoCa: learned queries and torch's module with keys of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(3 * torch.randn(4, DIM))
        self.attn = nn.MultiheadAttention(DIM, HEADS, kdim=16, vdim=16, batch_first=True)
        self.ln_k = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Any:
        x = 3 * self.ln_k(x)
        q = self.query.unsqueeze(0).expand(x.shape[0], -1, -1)
        return self.attn(q, x, x, need_weights=False)[0]


@ZOO.add("coca", AttentionalPooler, lambda: (tokens(2, TOKENS, 16),), sites=("attn",), layers="attn")
def coca(m: Any, normalize: Normalize, x: Tensor) -> Any:
    x, a = 3 * m.ln_k(x), m.attn
    weights, biases = (a.q_proj_weight, a.k_proj_weight, a.v_proj_weight), a.in_proj_bias.chunk(3)
    inputs = (m.query.expand(len(x), -1, -1), x, x)
    q, k, v = (split(F.linear(*parts)) for parts in zip(inputs, weights, biases, strict=True))
    return a.out_proj(merge(attend(normalize, q, k, v)))
