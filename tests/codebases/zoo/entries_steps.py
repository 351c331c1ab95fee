"""One attention laid out in all the ways in which its steps can be: methods, flags, chunks, checkpoints, layouts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .entries_spelling import Spelled
from .entry import DIM, HEADS, TOKENS, Normalize, Zoo, attend, merge, one, qkv_of, split, tokens

ZOO = Zoo()


def usual(m: Any, normalize: Normalize, x: Tensor, *_: Any) -> Any:
    return m.out(merge(attend(normalize, *qkv_of(m.in_proj(x)))))


class TwoMethods(Spelled):
    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return F.softmax(q @ k.mT, dim=-1)

    def read(self, weights: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(weights, v)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(self.read(self.weights(q, k), v))


ZOO.add("softmax and product in two methods", TwoMethods, one)(usual)


class ThreeMethods(Spelled):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.einsum("bhid,bhjd->bhij", q, k)

    def normalised(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(self.normalised(self.scores(q, k)) @ v)


ZOO.add("product, softmax, product in three methods", ThreeMethods, one)(usual)


class Inherited(ThreeMethods):
    """The subclass has the softmax, the base the products."""

    def normalised(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores - scores.amax(-1, keepdim=True), -1)


ZOO.add("softmax in a subclass", Inherited, one)(usual)


class Either(Spelled):
    """SDPA in one method, softmax in another, a flag of the call between them."""

    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0), None

    def written(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = (q @ k.mT).softmax(-1)
        return weights @ v, weights

    def forward(self, x: Tensor, need_weights: bool = False) -> Any:
        out, weights = (self.written if need_weights else self.fused)(*self.qkv(x))
        return {"x": self.join(out), "weights": weights}


@ZOO.add("SDPA or softmax by flag: SDPA", Either, lambda: (tokens(), False))
def either_fused(m: Any, normalize: Normalize, x: Tensor, flag: bool) -> Any:
    return {"x": usual(m, normalize, x), "weights": None}


@ZOO.add("SDPA or softmax by flag: softmax", Either, lambda: (tokens(), True))
def either_written(m: Any, normalize: Normalize, x: Tensor, flag: bool) -> Any:
    q, k, _ = qkv_of(m.in_proj(x))
    return {"x": usual(m, normalize, x), "weights": normalize((DIM // HEADS) ** -0.5 * q @ k.mT)}


class Both(Spelled):
    """SDPA for the output and a softmax beside it for the map that is shown."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x)
        half = len(x) // 2
        weights = (q[half:] @ k[half:].mT).softmax(-1)
        out = torch.cat([F.scaled_dot_product_attention(q[:half], k[:half], v[:half], scale=1.0), weights @ v[half:]])
        return self.join(out), weights


@ZOO.add("SDPA and softmax in one forward", Both, one)
def both(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, _ = qkv_of(m.in_proj(x[1:]))
    return usual(m, normalize, x), normalize((DIM // HEADS) ** -0.5 * q @ k.mT)


class InPlace(Spelled):
    """Scores are changed where they lie."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(HEADS, TOKENS, TOKENS))

    def forward(self, x: Tensor, hidden: Tensor) -> Any:
        q, k, v = self.qkv(x)
        attn = q @ k.mT
        attn += self.bias
        attn.mul_(1.5).masked_fill_(hidden, -65504.0)
        return self.join(attn.softmax(-1) @ v)


@ZOO.add("bias and mask in place", InPlace, lambda: (tokens(), torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(2)))
def in_place(m: Any, normalize: Normalize, x: Tensor, hidden: Tensor) -> Any:
    q, k, v = qkv_of(m.in_proj(x))
    bias = 1.5 * m.bias + torch.where(hidden, -1e9, 0.0)
    return m.out(merge(attend(normalize, q, k, v, scale=1.5 * (DIM // HEADS) ** -0.5, bias=bias)))


class Reshaped(Spelled):
    """Views, permutations and a clone lie between softmax and product."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        attn = (q @ k.mT).softmax(dim=-1)
        attn = attn.permute(0, 2, 3, 1).contiguous().clone()  # [B, N, S, H]
        attn = attn.permute(0, 3, 1, 2).reshape(-1, *attn.shape[1:3]).type_as(v)
        return self.join(torch.bmm(attn, v.flatten(0, 1)).view_as(q))


ZOO.add("views between softmax and product", Reshaped, one)(usual)


class Chunked(Spelled):
    """Queries in slices, as memory-efficient code has it."""

    def forward(self, x: Tensor, size: int) -> Any:
        q, k, v = self.qkv(x)
        out = torch.empty_like(q)
        for i in range(0, q.shape[2], size):
            out[:, :, i : i + size] = (q[:, :, i : i + size] @ k.mT).softmax(-1) @ v
        return self.join(out)


ZOO.add("chunks of queries", Chunked, lambda: (tokens(), 4))(usual)


def fused_core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def written_core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


class Checkpointed(Spelled):
    """The core, no method of the class, is recomputed in the backward pass, after forward has returned."""

    def __init__(self, use_reentrant: bool, fused: bool) -> None:
        super().__init__()
        self.use_reentrant, self.fused = use_reentrant, fused

    def forward(self, x: Tensor) -> Any:
        core = fused_core if self.fused else written_core
        return self.join(checkpoint(core, *self.qkv(x), use_reentrant=self.use_reentrant))


class CheckpointedMethod(Checkpointed):
    def core(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v

    def forward(self, x: Tensor) -> Any:
        return self.join(checkpoint(self.core, *self.qkv(x), use_reentrant=self.use_reentrant))


ZOO.add("checkpointed method, reentrant", lambda: CheckpointedMethod(True, False), one)(usual)
ZOO.add("checkpoint, reentrant", lambda: Checkpointed(True, False), one)(usual)
ZOO.add("checkpoint, not reentrant", lambda: Checkpointed(False, False), one)(usual)
ZOO.add("checkpointed SDPA, reentrant", lambda: Checkpointed(True, True), one)(usual)
ZOO.add("checkpointed SDPA, not reentrant", lambda: Checkpointed(False, True), one)(usual)


class MultiQuery(nn.Module):
    """One k and one v for all heads: [B, 1, S, D] broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM // HEADS), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Any:
        q = self.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.kv(x).chunk(2, dim=-1)
        attn = torch.einsum("bhid,bjd->bhij", q * q.shape[-1] ** -0.5, k).softmax(dim=-1)
        return self.out(torch.einsum("bhij,bjd->bhid", attn, v).transpose(1, 2).flatten(2))


@ZOO.add("multi-query", MultiQuery, one)
def multi_query(m: Any, normalize: Normalize, x: Tensor) -> Any:
    k, v = m.kv(x)[:, None].chunk(2, -1)
    return m.out(merge(attend(normalize, split(m.q(x)), k, v)))


class Folded(Spelled):
    """fairseq: heads folded into the batch, sequence first, bmm."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bsz, tgt_len, dim = x.shape
        q, k, v = self.in_proj(x.transpose(0, 1)).chunk(3, dim=-1)
        q = q * (dim // self.heads) ** -0.5
        q, k, v = (t.contiguous().view(tgt_len, bsz * self.heads, -1).transpose(0, 1) for t in (q, k, v))
        attn_weights = torch.bmm(q, k.transpose(1, 2))
        attn_weights_float = F.softmax(attn_weights, dim=-1, dtype=torch.float32)
        attn = torch.bmm(attn_weights_float.type_as(attn_weights), v)
        attn = attn.transpose(0, 1).contiguous().view(tgt_len, bsz, dim).transpose(0, 1)
        return self.out(attn), attn_weights_float.view(bsz, self.heads, tgt_len, -1)


@ZOO.add("heads in the batch, map in float32", Folded, one)
def folded(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, _ = qkv_of(m.in_proj(x))
    return usual(m, normalize, x), normalize((DIM // HEADS) ** -0.5 * q @ k.mT)


class KeysFirst(Spelled):
    """Scores are k @ q.T, [keys, queries], and are turned before the softmax."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        scores = torch.matmul(k, q.transpose(-1, -2))
        return self.join(scores.transpose(-1, -2).softmax(dim=-1) @ v)


ZOO.add("k @ q, then turned", KeysFirst, one)(usual)


class ChannelsFirst(nn.Module):
    """SAGAN and VQGAN: [B, C, N], b = q.T @ k, and v @ weights.T."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(DIM, DIM, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.q(x), self.k(x), self.v(x)
        w_ = torch.bmm(q.permute(0, 2, 1), k) * int(q.shape[1]) ** -0.5
        w_ = F.softmax(w_, dim=2).permute(0, 2, 1)
        return x + self.proj_out(torch.bmm(v, w_))


@ZOO.add("channels first, v on the left", ChannelsFirst, lambda: (tokens(2, DIM, TOKENS),))
def channels_first(m: Any, normalize: Normalize, x: Tensor) -> Any:
    return x + m.proj_out(attend(normalize, m.q(x).mT, m.k(x).mT, m.v(x).mT).mT)


class Sink(Spelled):
    """A learned temperature, a sink column whose weight is cut off, dropout, and weights that are scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.sink, self.temperature = nn.Parameter(torch.randn(HEADS, 1, 1)), nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        scores = q @ k.mT * self.temperature
        scores = torch.cat([scores, self.sink.expand(len(x), -1, x.shape[1], 1)], dim=-1)
        weights = F.dropout(torch.softmax(scores, dim=-1), 0.0, self.training)[..., :-1]
        return self.join(0.5 * weights @ v)


@ZOO.add("a sink beside the keys", Sink, one)
def sink(m: Any, normalize: Normalize, x: Tensor) -> Any:
    q, k, v = qkv_of(m.in_proj(x))
    scores = (DIM // HEADS) ** -0.5 * q @ k.mT * m.temperature
    weights = normalize(torch.cat([scores, m.sink.expand(len(x), -1, TOKENS, 1)], -1))[..., :-1]
    return m.out(merge(0.5 * weights @ v))
