"""One attention and all the ways in which its softmax or its products are named."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend_fused
from torch.nn.functional import softmax as soft_max

from .entry import DIM, HEADS, Normalize, Zoo, attend, merge, one, qkv_of

ZOO = Zoo()


class Spelled(nn.Module):
    """Everything but the attention itself; scores are q @ k.mT / sqrt(D)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.in_proj, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q / math.sqrt(q.shape[-1]), k, v

    def join(self, x: Tensor) -> Any:
        return self.out(x.transpose(1, 2).flatten(2))


def spelled(m: Any, normalize: Normalize, x: Tensor) -> Any:
    """What all of these compute."""
    return m.out(merge(attend(normalize, *qkv_of(m.in_proj(x)))))


def spelling(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Class decorator: the class is an entry."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        ZOO.add(name, cls, one)(spelled)
        return cls

    return register


@spelling("function in an attribute")
class InAttribute(Spelled):
    def __init__(self) -> None:
        super().__init__()
        self.act = fn.softmax

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(self.act(q @ k.mT, dim=-1) @ v)


@spelling("partial in an attribute")
class Partial(Spelled):
    def __init__(self) -> None:
        super().__init__()
        self.act = functools.partial(torch.softmax, dim=-1)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(self.act(q @ k.mT) @ v)


@spelling("activation chosen by name")
class ByName(Spelled):
    def __init__(self, act: str = "softmax") -> None:
        super().__init__()
        choices: dict[str, Any] = {"softmax": torch.softmax, "sigmoid": torch.sigmoid}
        self.act = choices[act]

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(torch.matmul(self.act(torch.matmul(q, k.mT), -1), v))


@spelling("nn.Softmax submodule")
class Submodule(Spelled):
    def __init__(self) -> None:
        super().__init__()
        self.normalise = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(self.normalise(q @ k.mT) @ v)


class Float32Softmax(nn.Module):
    """As LLaMA-like code has it: in single precision, and back."""

    def forward(self, scores: Tensor) -> Tensor:
        return fn.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


@spelling("softmax module of its own, float32")
class OwnModule(Spelled):
    def __init__(self) -> None:
        super().__init__()
        self.normalise = Float32Softmax()

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(self.normalise(q @ k.mT) @ v)


def weights_of(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1)


@spelling("helper in the module")
class Helper(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(weights_of(q, k) @ v)


def whole(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The annotated transformer's."""
    scores = torch.matmul(q, k.transpose(-2, -1))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -1e9)
    p_attn = scores.softmax(dim=-1)
    return torch.matmul(p_attn, v), p_attn


@spelling("the annotated transformer's function")
class Annotated(Spelled):
    def forward(self, x: Tensor) -> Any:
        x, self.attn = whole(*self.qkv(x))
        return self.join(x)


@spelling("static method")
class Static(Spelled):
    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT, dim=-1) @ v

    def forward(self, x: Tensor) -> Any:
        return self.join(self.attention(*self.qkv(x)))


@spelling("class method")
class ClassMethod(Spelled):
    @classmethod
    def attention(cls, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT, dim=-1) @ v

    def forward(self, x: Tensor) -> Any:
        return self.join(type(self).attention(*self.qkv(x)))


@spelling("closure")
class Closure(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)

        def core(part: Tensor) -> Tensor:
            return fn.softmax(part @ k.mT, dim=-1) @ v

        return self.join(core(q))


def maker(dim: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(dim) @ v

    return attention


@spelling("closure made at construction")
class Made(Spelled):
    def __init__(self) -> None:
        super().__init__()
        self.attention = maker(-1)

    def forward(self, x: Tensor) -> Any:
        return self.join(self.attention(*self.qkv(x)))


@spelling("lambda")
class Lambda(Spelled):
    def __init__(self) -> None:
        super().__init__()
        self.norm_fn: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(dim=-1)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(self.norm_fn(q @ k.mT) @ v)


@spelling("einsum, operands first to last in letters")
class Letters(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        scores = torch.einsum("nhqd,nhkd->nhqk", q, k)
        weights = torch.softmax(scores, dim=3)
        return self.out(torch.einsum("nhql,nhld->nqhd", weights, v).reshape(*x.shape))


@spelling("einsum in capitals, keys by heads last")
class Capitals(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = (t.transpose(1, 2) for t in self.qkv(x))  # [B, N, H, D]
        scores = torch.einsum("BNHD,BSHD->BHNS", q, k)
        return self.out(torch.einsum("BHNS,BSHD->BNHD", scores.softmax(-1), v).flatten(2))


@spelling("baddbmm")
class Baddbmm(Spelled):
    """diffusers and transformers' older models: heads in the batch, the scale as alpha."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = (t.flatten(0, 1) for t in self.qkv(x))
        empty = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype)
        scores = torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=1.0)
        out = torch.bmm(scores.softmax(dim=-1), v)
        return self.join(out.unflatten(0, (len(x), -1)))


@spelling("torch.nn.functional in full")
class InFull(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(torch.nn.functional.softmax(q @ k.mT, -1) @ v)


@spelling("softmax imported under another name")
class Imported(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(soft_max(q.matmul(k.mT), dim=-1).matmul(v))


@spelling("SDPA imported under another name")
class FusedImported(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(attend_fused(q, k, v, scale=1.0))


@spelling("SDPA in an attribute")
class FusedAttribute(Spelled):
    def __init__(self) -> None:
        super().__init__()
        self.attention = functools.partial(fn.scaled_dot_product_attention, scale=1.0)

    def forward(self, x: Tensor) -> Any:
        return self.join(self.attention(*self.qkv(x)))


@spelling("Tensor.softmax, unbound")
class Unbound(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(Tensor.softmax(q @ k.mT, -1) @ v)


@spelling("torch.special.softmax")
class Special(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(torch.special.softmax(q @ k.mT, dim=-1) @ v)


@spelling("everything by keyword")
class Keywords(Spelled):
    """Every argument by keyword."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        return self.join(torch.matmul(input=torch.softmax(input=torch.matmul(input=q, other=k.mT), dim=-1), other=v))
