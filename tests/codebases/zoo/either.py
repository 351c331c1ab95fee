"""Attention that may be answered, if rightly, or refused: its softmax is reached in unusual ways."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entries_spelling import Spelled, spelled
from .entry import DIM, HEADS, SIDE, TOKENS, Normalize, Zoo, merge, one, qkv_of, split, tokens

ZOO = Zoo()


def either(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: the class is an entry that computes the usual attention of tokens."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        ZOO.add(name, cls, one)(spelled)
        return cls

    return register


@either("SDPA by getattr")
class FusedGetattr(Spelled):
    def forward(self, x: Tensor) -> Any:
        sdpa = getattr(F, "scaled_dot_product" + "_attention")
        return self.join(sdpa(*self.qkv(x), scale=1.0))


@either("aten's softmax")
class Aten(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(torch.ops.aten.softmax.int(q @ k.mT, -1) @ v)


@either("torch._softmax")
class Private(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(torch._softmax(q @ k.mT, -1, False) @ v)


@either("aten's attention")
class AtenAttention(Spelled):
    def forward(self, x: Tensor) -> Any:
        return self.join(torch.ops.aten._scaled_dot_product_attention_math(*self.qkv(x), scale=1.0)[0])


@either("softmin of minus the scores")
class Softmin(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(F.softmin(-(q @ k.mT), dim=-1) @ v)


@either("softmax module made in forward")
class MadeInForward(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(nn.Softmax(dim=-1)(q @ k.mT) @ v)


def _scripted(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1)


@either("softmax in TorchScript")
class Scripted(Spelled):
    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.jit.script(_scripted)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(self.weights(q @ k.mT) @ v)


class ByHand(torch.autograd.Function):
    """Its backward is softmax's, whatever its forward is made to be."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.softmax(q @ k.mT, dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = ctx.saved_tensors
        by_weights = grads[0] @ v.mT
        by_scores = weights * (by_weights - (by_weights * weights).sum(-1, keepdim=True))
        return by_scores @ k, by_scores.mT @ q, weights.mT @ grads[0]


@either("autograd.Function with a backward of its own")
class HandWritten(Spelled):
    def forward(self, x: Tensor) -> Any:
        return self.join(ByHand.apply(*self.qkv(x)))


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As older code has it, under the name that torch took later, and without torch's scale."""
    return torch.softmax(torch.matmul(q, k.transpose(-2, -1)), dim=-1) @ v


@either("a helper that bears SDPA's name")
class Namesake(Spelled):
    def forward(self, x: Tensor) -> Any:
        return self.join(scaled_dot_product_attention(*self.qkv(x)))


@either("k @ q, softmax over dim -2")
class KeysFirst(Spelled):
    """Scores stay [keys, queries]: dimension -2 is the one of keys, and v is on the left."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        weights = torch.matmul(k, q.transpose(-1, -2)).softmax(dim=-2)
        return self.join((v.transpose(-1, -2) @ weights).transpose(-1, -2))


@either("products written as sums")
class Elementwise(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        weights = (q[:, :, :, None] * k[:, :, None]).sum(-1).softmax(-1)
        return self.join((weights[..., None] * v[:, :, None]).sum(-2))


@either("torch.func.vmap over heads")
class Vmapped(Spelled):
    def forward(self, x: Tensor) -> Any:
        def head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.softmax(q @ k.mT, dim=-1) @ v

        return self.join(torch.func.vmap(head, in_dims=1, out_dims=1)(*self.qkv(x)))


class Distance(Spelled):
    """Scores are distances and no products."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(torch.softmax(-torch.cdist(q, k), dim=-1) @ v)


@ZOO.add("negative distances", Distance, one)
def distance(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, v = qkv_of(m.in_proj(x))
    scores = -(q[:, :, :, None] / math.sqrt(DIM // HEADS) - k[:, :, None]).pow(2).sum(-1).sqrt()
    return m.out(merge(normalize(scores) @ v))


class Additive(nn.Module):
    """Bahdanau's: a small network scores each pair."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.score = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = 4 * self.score(torch.tanh(self.query(x)[:, :, None] + self.key(x)[:, None])).squeeze(-1)
        return torch.bmm(F.softmax(scores, dim=-1), x)


@ZOO.add("additive scores", Additive, one)
def additive(m: Any, normalize: Normalize, x: Tensor) -> Tensor:
    pairs = m.query(x)[:, :, None] + m.key(x)[:, None]
    return normalize(4 * m.score(pairs.tanh())[..., 0]) @ x


class Local(nn.Module):
    """Each token of a grid asks its neighbours, with unfold and elementwise products (SASA, QnA, halo)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.q, self.k, self.v = (nn.Conv2d(DIM, DIM, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        B, C, H, W = x.shape
        q = self.q(x).view(B, self.heads, -1, 1, H * W)
        k, v = (F.unfold(f(x), 3, padding=1).view(B, self.heads, -1, 9, H * W) for f in (self.k, self.v))
        weights = (q * k).sum(dim=2, keepdim=True).softmax(dim=3)
        return (weights * v).sum(dim=3).view(B, C, H, W)


@ZOO.add("neighbours by unfold", Local, lambda: (tokens(2, DIM, SIDE, SIDE),))
def local(m: Any, normalize: Normalize, x: Tensor) -> Tensor:
    q = split(m.q(x).flatten(2).mT)[:, :, :, None]  # [B, heads, N, 1, D]
    k, v = (F.unfold(f(x), 3, padding=1).view(2, HEADS, -1, 9, TOKENS).permute(0, 1, 4, 3, 2) for f in (m.k, m.v))
    out = normalize(q @ k.mT) @ v
    return merge(out[:, :, :, 0]).mT.view_as(x)
