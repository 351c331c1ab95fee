"""Cross-attention: CroCo, LightGlue, GroundingDINO, Perceiver, and the non-local block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import DIM, HEADS, SIDE, Normalize, Zoo, attend, merge, one, rope, split, tokens

ZOO = Zoo()

PAIR = (2, 6, DIM)


def two() -> tuple[Tensor, Tensor]:
    """x [2, 9, 24] and y [2, 6, 24]."""
    return tokens(), tokens(*PAIR)


class CrocoCross(nn.Module):
    """CroCo's and DUSt3R's decoder: projq, projk, projv and a rotation that is a module's attribute."""

    def __init__(self, turn: Any = None) -> None:
        super().__init__()
        self.num_heads, self.scale, self.rope = HEADS, (DIM // HEADS) ** -0.5, turn
        self.projq, self.projk, self.projv, self.proj = (nn.Linear(DIM, DIM) for _ in range(4))
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        B, Nq, C = query.shape
        Nk, Nv = key.shape[1], value.shape[1]
        q = self.projq(query).reshape(B, Nq, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        k = self.projk(key).reshape(B, Nk, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        v = self.projv(value).reshape(B, Nv, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        if self.rope is not None:
            q, k = self.rope(q), self.rope(k)
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        attn = self.attn_drop(attn)
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).reshape(B, Nq, C)))


def croco_reference(m: Any, normalize: Normalize, x: Tensor, y: Tensor) -> Any:
    q, k, v = rope(split(m.projq(x))), rope(split(m.projk(y))), split(m.projv(y))
    return m.proj(merge(attend(normalize, q, k, v)))


class CrocoDecoder(nn.Module):
    """Self-attention, then cross-attention, in one block: both are sites."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm_y = nn.LayerNorm(DIM), nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn, self.cross_attn = CrocoCross(rope), CrocoCross(rope)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x1 = 3 * self.norm1(x)
        x = x + self.attn(x1, x1, x1)
        y_ = 3 * self.norm_y(y)
        return x + self.cross_attn(3 * self.norm2(x), y_, y_), y


@ZOO.add("croco decoder", CrocoDecoder, two, sites=("attn", "cross_attn"))
def croco(m: Any, normalize: Normalize, x: Tensor, y: Tensor) -> Any:
    x1 = 3 * m.norm1(x)
    x = x + croco_reference(m.attn, normalize, x1, x1)
    return x + croco_reference(m.cross_attn, normalize, 3 * m.norm2(x), 3 * m.norm_y(y)), y


class LightGlueSelf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.Wqkv, self.out_proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.ffn = nn.Sequential(nn.Linear(2 * DIM, DIM), nn.GELU())

    def forward(self, x: Tensor) -> Any:
        qkv = self.Wqkv(x).unflatten(-1, (self.num_heads, -1, 3)).transpose(1, 2)
        q, k, v = qkv[..., 0], qkv[..., 1], qkv[..., 2]
        context = F.scaled_dot_product_attention(rope(q), rope(k), v)
        message = self.out_proj(context.transpose(1, 2).flatten(start_dim=-2))
        return x + self.ffn(torch.cat([x, message], -1))


class LightGlueCross(nn.Module):
    """One product of shared queries and keys, a softmax in each direction."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.to_qk, self.to_v, self.to_out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        qk0, qk1, v0, v1 = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.to_qk(x0), self.to_qk(x1), self.to_v(x0), self.to_v(x1))
        )
        qk0, qk1 = qk0 * self.scale**0.5, qk1 * self.scale**0.5
        sim = torch.einsum("bhid, bhjd -> bhij", qk0, qk1)
        attn01 = F.softmax(sim, dim=-1)
        attn10 = F.softmax(sim.transpose(-2, -1).contiguous(), dim=-1)
        m0 = torch.einsum("bhij, bhjd -> bhid", attn01, v1)
        m1 = torch.einsum("bhji, bhjd -> bhid", attn10.transpose(-2, -1), v0)
        m0, m1 = (self.to_out(t.transpose(1, 2).flatten(start_dim=-2)) for t in (m0, m1))
        return x0 + m0, x1 + m1


class LightGlue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = LightGlueSelf(), LightGlueCross()

    def forward(self, x0: Tensor, x1: Tensor) -> Any:
        return self.cross_attn(self.self_attn(x0), self.self_attn(x1))


@ZOO.add("lightglue", LightGlue, two, sites=("self_attn", "cross_attn"))
def lightglue(m: Any, normalize: Normalize, x0: Tensor, x1: Tensor) -> Any:
    def self_attention(x: Tensor) -> Any:
        q, k, v = m.self_attn.Wqkv(x).unflatten(-1, (-1, 3)).unbind(-1)
        message = m.self_attn.out_proj(merge(attend(normalize, rope(split(q)), rope(split(k)), split(v))))
        return x + m.self_attn.ffn(torch.cat([x, message], -1))

    x0, x1, c = self_attention(x0), self_attention(x1), m.cross_attn
    k0, k1, v0, v1 = split(c.to_qk(x0)), split(c.to_qk(x1)), split(c.to_v(x0)), split(c.to_v(x1))
    return x0 + c.to_out(merge(attend(normalize, k0, k1, v1))), x1 + c.to_out(merge(attend(normalize, k1, k0, v0)))


class BiAttention(nn.Module):
    """GroundingDINO: image and text ask each other over one product, with clamps, in heads folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = HEADS, DIM // HEADS, (DIM // HEADS) ** -0.5
        self.v_proj, self.l_proj, self.values_v_proj, self.values_l_proj = (nn.Linear(DIM, DIM) for _ in range(4))
        self.out_v_proj, self.out_l_proj = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def _shape(self, x: Tensor) -> Tensor:
        x = x.view(x.shape[0], -1, self.num_heads, self.head_dim).transpose(1, 2)
        return x.reshape(-1, x.shape[2], self.head_dim)

    def _unshape(self, x: Tensor, batch: int) -> Tensor:
        return x.view(batch, self.num_heads, -1, self.head_dim).transpose(1, 2).flatten(2)

    def forward(self, v: Tensor, lang: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        batch, tgt_len = v.shape[0], v.shape[1]
        query_states = self._shape(self.v_proj(v) * self.scale)
        key_states = self._shape(self.l_proj(lang))
        value_v, value_l = self._shape(self.values_v_proj(v)), self._shape(self.values_l_proj(lang))
        src_len = key_states.size(1)
        attn_weights = torch.bmm(query_states, key_states.transpose(1, 2))
        attn_weights = attn_weights - attn_weights.max()
        attn_weights = torch.clamp(attn_weights, min=-50000)
        attn_weights = torch.clamp(attn_weights, max=50000)
        attn_weights_T = attn_weights.transpose(1, 2)
        attn_weights_l = attn_weights_T - torch.max(attn_weights_T, dim=-1, keepdim=True)[0]
        attn_weights_l = torch.clamp(attn_weights_l, min=-50000)
        attn_weights_l = attn_weights_l.softmax(dim=-1)
        mask = padding[:, None, None, :].repeat(1, self.num_heads, 1, 1).flatten(0, 1)
        attn_weights.masked_fill_(mask, float("-inf"))
        attn_weights_v = attn_weights.softmax(dim=-1)
        out_v = torch.bmm(F.dropout(attn_weights_v, p=0.0, training=self.training), value_l)
        out_l = torch.bmm(F.dropout(attn_weights_l, p=0.0, training=self.training), value_v)
        assert out_v.size() == (batch * self.num_heads, tgt_len, self.head_dim) and src_len == lang.shape[1]
        return self.out_v_proj(self._unshape(out_v, batch)), self.out_l_proj(self._unshape(out_l, batch))


@ZOO.add("groundingdino", BiAttention, lambda: (*two(), torch.arange(6).expand(2, 6) == 5))
def bi_attention(m: Any, normalize: Normalize, v: Tensor, lang: Tensor, padding: Tensor) -> Any:
    q, k, values_v, values_l = split(m.v_proj(v)), split(m.l_proj(lang)), m.values_v_proj(v), m.values_l_proj(lang)
    bias = torch.where(padding, -1e9, 0.0)[:, None, None]
    out_v = attend(normalize, q, k, split(values_l), bias=bias)
    return m.out_v_proj(merge(out_v)), m.out_l_proj(merge(attend(normalize, k, q, split(values_v))))


class PerceiverAttention(nn.Module):
    """Flamingo's resampler: latents ask the media and themselves; the scores' maximum is subtracted first."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.latents = nn.Parameter(3 * torch.randn(4, DIM))
        self.to_q, self.to_kv, self.to_out = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Any:
        latents = self.latents.expand(x.shape[0], -1, -1)
        q = self.to_q(latents)
        k, v = self.to_kv(torch.cat((x, latents), dim=-2)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        sim = torch.einsum("... i d, ... j d  -> ... i j", q * self.scale, k)
        sim = sim - sim.amax(dim=-1, keepdim=True).detach()
        attn = sim.softmax(dim=-1)
        out = torch.einsum("... i j, ... j d -> ... i d", attn, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


@ZOO.add("perceiver", PerceiverAttention, one)
def perceiver(m: Any, normalize: Normalize, x: Tensor) -> Any:
    latents = m.latents.expand(len(x), -1, -1)
    k, v = (split(part) for part in m.to_kv(torch.cat([x, latents], 1)).chunk(2, -1))
    return m.to_out(merge(attend(normalize, split(m.to_q(latents)), k, v)))


class NonLocal(nn.Module):
    """Convolutions theta, phi and g; no scale, no heads."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(DIM, 8, 1) for _ in range(3))
        self.W = nn.Conv2d(8, DIM, 1)

    def forward(self, x: Tensor) -> Any:
        b = x.size(0)
        g_x = self.g(x).view(b, 8, -1).permute(0, 2, 1)
        theta_x = self.theta(x).view(b, 8, -1).permute(0, 2, 1)
        phi_x = self.phi(x).view(b, 8, -1)
        f_div_c = F.softmax(torch.matmul(theta_x, phi_x), dim=-1)
        y = torch.matmul(f_div_c, g_x).permute(0, 2, 1).contiguous()
        return self.W(y.view(b, 8, *x.size()[2:])) + x


class Disentangled(NonLocal):
    """A second row of weights over the same keys, one for all queries."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Conv2d(DIM, 1, 1)

    def forward(self, x: Tensor) -> Any:
        pairs = super().forward(x)
        g_x = self.g(x).flatten(2).permute(0, 2, 1)
        unary = self.mask(x).flatten(2).softmax(dim=-1)
        return pairs + self.W(torch.matmul(unary, g_x).permute(0, 2, 1).unsqueeze(-1))


@ZOO.add("disentangled non-local", Disentangled, lambda: (tokens(2, DIM, SIDE, SIDE, scale=2.0),))
def disentangled(m: Any, normalize: Normalize, x: Tensor) -> Any:
    unary = normalize(m.mask(x).flatten(2)) @ m.g(x).flatten(2).mT
    return non_local(m, normalize, x) + m.W(unary.mT.unsqueeze(-1))


@ZOO.add("non-local", NonLocal, lambda: (tokens(2, DIM, SIDE, SIDE, scale=2.0),))
def non_local(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, v = (conv(x).flatten(2).mT for conv in (m.theta, m.phi, m.g))
    return x + m.W(attend(normalize, q, k, v, scale=1.0).mT.unflatten(2, (SIDE, SIDE)))
