"""Mixed heads, class attention, channels, gates, and the plain ViTs of two libraries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entries_dino import Qkv
from .entry import DIM, HEADS, TOKENS, Normalize, Zoo, attend, merge, one, qkv_of, split, tokens

ZOO = Zoo()


class TalkingHeads(Qkv):
    """CaiT: linear layers over the heads before and after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_l, self.proj_w = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def forward(self, x: Tensor) -> Any:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        attn = q @ k.transpose(-2, -1)
        attn = self.proj_l(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        attn = attn.softmax(dim=-1)
        attn = self.proj_w(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        attn = self.attn_drop(attn)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


def mixed(linear: nn.Linear, maps: Tensor) -> Tensor:
    """[B, heads, N, S] -> the same, each output head a weighted sum of input heads."""
    return torch.einsum("oi,binm->bonm", linear.weight, maps) + linear.bias[:, None, None]


@ZOO.add("cait talking heads", TalkingHeads, one)
def talking_heads(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, v = qkv_of(m.qkv(x))
    weights = normalize(mixed(m.proj_l, m.scale * q @ k.mT))
    return m.proj(merge(mixed(m.proj_w, weights) @ v))


class ClassAttention(nn.Module):
    """CaiT: only the class token asks."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(DIM, DIM) for _ in range(4))
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Any:
        B, N, C = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(B, 1, self.num_heads, -1).permute(0, 2, 1, 3)
        k = self.k(x).reshape(B, N, self.num_heads, -1).permute(0, 2, 1, 3)
        q = q * self.scale
        v = self.v(x).reshape(B, N, self.num_heads, -1).permute(0, 2, 1, 3)
        attn = q @ k.transpose(-2, -1)
        attn = attn.softmax(dim=-1)
        x_cls = (self.attn_drop(attn) @ v).transpose(1, 2).reshape(B, 1, C)
        return self.proj_drop(self.proj(x_cls))


@ZOO.add("cait class attention", ClassAttention, one)
def class_attention(m: Any, normalize: Normalize, x: Tensor) -> Any:
    return m.proj(merge(attend(normalize, split(m.q(x[:, :1])), split(m.k(x)), split(m.v(x)))))


class XcitClassAttention(Qkv):
    """XCiT: an elementwise product and a sum instead of q @ k; the class token alone asks."""

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn_cls = (q[:, :, 0:1] * k).sum(dim=-1) * self.scale
        attn_cls = self.attn_drop(attn_cls.softmax(dim=-1))
        cls_tkn = (attn_cls.unsqueeze(2) @ v).transpose(1, 2).reshape(B, 1, C)
        return torch.cat([self.proj(cls_tkn), x[:, 1:]], dim=1)


@ZOO.add("xcit class attention", XcitClassAttention, one)
def xcit_class(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, v = qkv_of(m.qkv(x))
    return torch.cat([m.proj(merge(attend(normalize, q[:, :, :1], k, v))), x[:, 1:]], 1)


class Xca(Qkv):
    """XCiT: channels ask channels, with l2-norm over tokens and a temperature per head."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.full((HEADS, 1, 1), 4.0))

    def forward(self, x: Tensor) -> Any:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = (t.transpose(-2, -1) for t in qkv.unbind(0))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attn = (q @ k.transpose(-2, -1)) * self.temperature
        attn = self.attn_drop(attn.softmax(dim=-1))
        return self.proj((attn @ v).permute(0, 3, 1, 2).reshape(B, N, C))


@ZOO.add("xcit", Xca, one)
def xcit(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, v = (t.mT for t in qkv_of(m.qkv(x)))
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    return m.proj(merge((normalize(q @ k.mT * m.temperature) @ v).mT))


class ChannelGroups(Qkv):
    """DaViT: what is called k and v makes the map of channels, and q is read by it."""

    def forward(self, x: Tensor) -> Any:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        k = k * N**-0.5
        attention = k.transpose(-1, -2) @ v
        attention = attention.softmax(dim=-1)
        x = (attention @ q.transpose(-1, -2)).transpose(-1, -2)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


@ZOO.add("davit channels", ChannelGroups, one)
def davit(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, v = qkv_of(m.qkv(x))
    return m.proj(merge((normalize(TOKENS**-0.5 * k.mT @ v) @ q.mT).mT))


class Gpsa(nn.Module):
    """ConViT: a gate mixes the weights of content with those of position; both are rows over keys."""

    rel_indices: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.qk, self.v = nn.Linear(DIM, 2 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.proj, self.pos_proj = nn.Linear(DIM, DIM), nn.Linear(3, HEADS)
        self.gating_param = nn.Parameter(torch.ones(HEADS))
        self.register_buffer("rel_indices", 2 * torch.randn(1, TOKENS, TOKENS, 3))

    def get_attention(self, x: Tensor) -> Any:
        B, N, C = x.shape
        qk = self.qk(x).reshape(B, N, 2, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k = qk[0], qk[1]
        pos_score = self.pos_proj(self.rel_indices.expand(B, -1, -1, -1)).permute(0, 3, 1, 2)
        patch_score = (q @ k.transpose(-2, -1)) * self.scale
        patch_score = patch_score.softmax(dim=-1)
        pos_score = pos_score.softmax(dim=-1)
        gating = self.gating_param.view(1, -1, 1, 1)
        attn = (1.0 - torch.sigmoid(gating)) * patch_score + torch.sigmoid(gating) * pos_score
        attn /= attn.sum(dim=-1).unsqueeze(-1)
        return attn

    def forward(self, x: Tensor) -> Any:
        B, N, C = x.shape
        attn = self.get_attention(x)
        v = self.v(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


@ZOO.add("convit", Gpsa, one)
def convit(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k = (split(part) for part in m.qk(x).chunk(2, -1))
    gate = m.gating_param.sigmoid()[:, None, None]
    content = normalize(m.scale * q @ k.mT)
    position = normalize(m.pos_proj(m.rel_indices).permute(0, 3, 1, 2))
    return m.proj(merge(((1 - gate) * content + gate * position) @ split(m.v(x))))


class Attend(nn.Module):
    """vit-pytorch: a norm first, to_qkv without bias, ``self.attend``, and an output that may be the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.norm, self.attend = nn.LayerNorm(DIM), nn.Softmax(dim=-1)
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor) -> Any:
        qkv = self.to_qkv(3 * self.norm(x)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv)
        dots = torch.matmul(q, k.transpose(-1, -2)) * self.scale
        attn = self.attend(dots)
        out = torch.matmul(attn, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


@ZOO.add("vit-pytorch", Attend, one)
def simple_vit(m: Any, normalize: Normalize, x: Tensor) -> Any:
    return m.to_out(merge(attend(normalize, *qkv_of(m.to_qkv(3 * m.norm(x))))))


class MixHeads(nn.Module):
    """vit-pytorch's CaiT: parameters mix the heads by einsum, and a context may be given."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.scale, self.attend = HEADS, (DIM // HEADS) ** -0.5, nn.Softmax(dim=-1)
        self.to_q, self.to_kv = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, 2 * DIM, bias=False)
        self.mix_heads_pre_attn = nn.Parameter(torch.randn(HEADS, HEADS))
        self.mix_heads_post_attn = nn.Parameter(torch.randn(HEADS, HEADS))
        self.to_out = nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        context = x if context is None else torch.cat((x, context), dim=1)
        qkv = (self.to_q(x), *self.to_kv(context).chunk(2, dim=-1))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv)
        dots = torch.einsum("b h i d, b h j d -> b h i j", q, k) * self.scale
        dots = torch.einsum("b h i j, h g -> b g i j", dots, self.mix_heads_pre_attn)
        attn = self.attend(dots)
        attn = torch.einsum("b h i j, h g -> b g i j", attn, self.mix_heads_post_attn)
        out = torch.einsum("b h i j, b h j d -> b h i d", attn, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


@ZOO.add("vit-pytorch cait", MixHeads, lambda: (tokens(), tokens(2, 4, DIM)))
def mix_heads(m: Any, normalize: Normalize, x: Tensor, context: Tensor) -> Any:
    everything = torch.cat([x, context], 1)
    k, v = (split(part) for part in m.to_kv(everything).chunk(2, -1))
    scores = m.scale * split(m.to_q(x)) @ k.mT
    scores = torch.einsum("bhij,hg->bgij", scores, m.mix_heads_pre_attn)
    weights = torch.einsum("bhij,hg->bgij", normalize(scores), m.mix_heads_post_attn)
    return m.to_out(merge(weights @ v))


class Pretrained(nn.Module):
    """PyTorch-Pretrained-ViT: split_last, merge_last and the scores as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_q, self.proj_k, self.proj_v = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.drop = nn.Dropout(0.0)
        self.n_heads = HEADS
        self.scores: Tensor | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.proj_q(x), self.proj_k(x), self.proj_v(x)
        q, k, v = (split_last(t, (self.n_heads, -1)).transpose(1, 2) for t in [q, k, v])
        scores = q @ k.transpose(-2, -1) / k.size(-1) ** 0.5
        if mask is not None:
            scores -= 10000.0 * (1.0 - mask[:, None, None, :].to(scores.dtype))
        scores = self.drop(F.softmax(scores, dim=-1))
        h = (scores @ v).transpose(1, 2).contiguous()
        self.scores = scores
        return merge_last(h, 2)


def split_last(x: Tensor, shape: tuple[int, int]) -> Tensor:
    return x.view(*x.shape[:-1], *(s if s > 0 else x.shape[-1] // shape[0] for s in shape))


def merge_last(x: Tensor, n: int) -> Tensor:
    return x.view(*x.shape[:-n], -1)


@ZOO.add("pytorch-pretrained-vit", Pretrained, lambda: (tokens(), (torch.arange(TOKENS) < 7).expand(2, -1)))
def pretrained(m: Any, normalize: Normalize, x: Tensor, mask: Tensor) -> Any:
    q, k, v = (split(p(x)) for p in (m.proj_q, m.proj_k, m.proj_v))
    return merge(attend(normalize, q, k, v, bias=-1e4 * (~mask)[:, None, None].to(x.dtype)))
