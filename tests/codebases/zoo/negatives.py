"""Modules in which patch must not touch anything: their softmax is hidden, over something else, or no attention's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entries_spelling import Spelled
from .entry import DIM, HEADS


class ExpAndSum(Spelled):
    """Softmax written out: nothing that could be answered is called."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        attn = torch.exp(q @ k.mT)
        return self.join((attn / attn.sum(dim=-1, keepdim=True)) @ v)


class LogSoftmaxExp(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(F.log_softmax(q @ k.mT, dim=-1).exp() @ v)


class LogSumExp(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        scores = q @ k.mT
        return self.join(torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True)) @ v)


class Tiles(Spelled):
    """FlashAttention's algorithm in plain torch: a running maximum and a running sum."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        out, total = torch.zeros_like(q), torch.zeros_like(q[..., :1])
        top = torch.full_like(total, -1e9)
        for keys, values in zip(k.split(4, 2), v.split(4, 2), strict=True):
            scores = q @ keys.mT
            new = torch.maximum(top, scores.amax(-1, keepdim=True))
            p, old = (scores - new).exp(), (top - new).exp()
            out, total, top = out * old + p @ values, total * old + p.sum(-1, keepdim=True), new
        return self.join(out / total)


class Gumbel(Spelled):
    """A draw, not the softmax of the scores."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        torch.manual_seed(3)
        return self.join(F.gumbel_softmax(q @ k.mT, dim=-1) @ v)


class SlotAttention(nn.Module):
    """Slots compete for inputs (softmax over queries), and each slot's share is renormalised over keys."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.slots = nn.Parameter(torch.randn(1, 4, DIM))

    def forward(self, x: Tensor) -> Tensor:
        q = self.to_q(self.slots.expand(len(x), -1, -1))
        k, v = self.to_k(x), self.to_v(x)
        dots = torch.einsum("bid,bjd->bij", q, k) * DIM**-0.5
        attn = dots.softmax(dim=1) + 1e-8
        attn = attn / attn.sum(dim=-1, keepdim=True)
        return torch.einsum("bjd,bij->bid", v, attn)


class SlotsLast(SlotAttention):
    """The same with slots as the last dimension: the softmax is over -1, and over queries still."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.to_q(self.slots.expand(len(x), -1, -1))
        k, v = self.to_k(x), self.to_v(x)
        attn = F.softmax(torch.matmul(k, q.transpose(-1, -2)) * DIM**-0.5, dim=-1) + 1e-8
        attn = attn / attn.sum(dim=1, keepdim=True)
        return torch.matmul(attn.transpose(-1, -2), v)


class Assignment(nn.Module):
    """GroupViT: tokens are assigned to groups (softmax over groups), and a group is the mean of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = 1, DIM**-0.5
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(DIM, DIM) for _ in range(4))
        self.groups = nn.Parameter(torch.randn(1, 4, DIM))

    def get_attn(self, attn: Tensor) -> Tensor:
        return F.softmax(attn, dim=-2)

    def forward(self, x: Tensor) -> Any:
        q = self.q_proj(self.groups.expand(len(x), -1, -1))
        attn = self.get_attn((q @ self.k_proj(x).transpose(-2, -1)) * self.scale)
        attn = attn / (attn.sum(dim=-1, keepdim=True) + 1.0)
        return self.proj(attn @ self.v_proj(x))


class LinearAttention(Spelled):
    """Efficient attention: a softmax over q's features and one over k's tokens, and no score of a pair."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        context = k.softmax(dim=-2).transpose(-1, -2) @ v
        return self.join(q.softmax(dim=-1) @ context)


class LinearEinsum(Spelled):
    """The same in einsum, k's tokens last."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = (t.transpose(-1, -2) for t in self.qkv(x))
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=-1), v)
        out = torch.einsum("bhde,bhdn->bhen", context, q.softmax(dim=-2))
        return self.join(out.transpose(-1, -2))


class Outlook(nn.Module):
    """VOLO's first stage: a linear layer says how neighbours are weighted, and no token is compared with another."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.kernel_size = HEADS, 3
        self.v, self.attn, self.proj = nn.Linear(DIM, DIM), nn.Linear(DIM, 81 * HEADS), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Any:
        B, H, W, C = x.shape
        v = F.unfold(self.v(x).permute(0, 3, 1, 2), 3, padding=1)
        v = v.reshape(B, self.num_heads, C // self.num_heads, 9, H * W).permute(0, 1, 4, 3, 2)
        attn = self.attn(x).reshape(B, H * W, self.num_heads, 9, 9).permute(0, 2, 1, 3, 4)
        x = (attn.softmax(dim=-1) @ v).permute(0, 1, 4, 3, 2).reshape(B, C * 9, H * W)
        return self.proj(F.fold(x, (H, W), 3, padding=1).permute(0, 2, 3, 1))


class OverAllPairs(Spelled):
    """One distribution over all pairs of tokens; no row is one."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        scores = q @ k.mT
        return self.join(scores.flatten(2).softmax(dim=-1).view_as(scores) @ v)


class OverHeads(Spelled):
    """Heads compete for each pair."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join((q @ k.mT).softmax(dim=1) @ v)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bears the name of torch's and is another function."""
    powers = torch.exp(q @ k.mT)
    return powers / powers.sum(-1, keepdim=True) @ v


class Impostor(Spelled):
    def forward(self, x: Tensor) -> Any:
        return self.join(scaled_dot_product_attention(*self.qkv(x)))


class UnaryFirst(Spelled):
    """Two softmaxes over the keys: the first of scores of single tokens, before there is a score of a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.single = nn.Linear(DIM // HEADS, 1)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        unary = self.single(k).transpose(-1, -2).softmax(dim=-1) @ v
        return self.join((q @ k.mT).softmax(dim=-1) @ v + unary)


class Factorised(Spelled):
    """A softmax over bases begins a factorisation, whose steps sum over the tokens as well."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        coefficients = (q @ k.mT).softmax(dim=-1)
        bases = coefficients.mT @ v
        return self.join(coefficients @ bases)


TOKENS_IN = [
    *(ExpAndSum, LogSoftmaxExp, LogSumExp, Tiles, Gumbel, SlotAttention, SlotsLast, Assignment),
    *(LinearAttention, LinearEinsum, OverAllPairs, OverHeads, Impostor, UnaryFirst, Factorised),
]
"""Take x [2, 9, 24]."""
GRID_IN = [Outlook]
