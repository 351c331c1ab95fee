"""Fused functions that no torch mode sees, alone and in a branch: answered rightly, or refused by their name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from . import stubs
from .entries_spelling import Spelled, spelled
from .entry import SIDE, one, softmax, tokens
from .outcome import REFUSALS, alone, beside, told
from .test_zoo import same

try:  # as all of these codebases have it; the stubs stand for what the import gives
    from flash_attn import flash_attn_func, flash_attn_varlen_func
    from natten.functional import na2d_av, na2d_qk
    from sageattention import sageattn
except ImportError:
    from .stubs import flash_attn_func, flash_attn_varlen_func, na2d_av, na2d_qk, sageattn


@pytest.fixture(autouse=True)
def packages(request: pytest.FixtureRequest) -> Iterator[None]:
    """The stubs can be imported; flex_attention, which has no backward pass on the CPU, is run without gradients."""
    with stubs.installed(), torch.set_grad_enabled("Flex" not in request.node.name):
        yield


class Branch(Spelled):
    """The fused function where a flag says so; SDPA otherwise."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.use_fused = fused

    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError  # each of BRANCHES has one

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        if self.use_fused:
            return self.join(self.fused(q, k, v))
        return self.join(F.scaled_dot_product_attention(q, k, v, scale=1.0))


class Flash(Spelled):
    def forward(self, x: Tensor) -> Any:
        q, k, v = (t.transpose(1, 2) for t in self.qkv(x))
        return self.out(flash_attn_func(q, k, v, softmax_scale=1.0).flatten(2))


class FlashBranch(Branch):
    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return flash_attn_func(q, k, v, 0.0, 1.0).transpose(1, 2)


class Varlen(Spelled):
    def forward(self, x: Tensor) -> Any:
        B, N, _ = x.shape
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in self.qkv(x))
        starts = N * torch.arange(B + 1, dtype=torch.int32)
        out = flash_attn_varlen_func(q, k, v, starts, starts, N, N, softmax_scale=1.0)
        return self.out(out.flatten(1).view(B, N, -1))


class VarlenBranch(Branch):
    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        B, H, N, D = q.shape
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        starts = N * torch.arange(B + 1, dtype=torch.int32)
        out = flash_attn_varlen_func(q, k, v, starts, starts, N, N, softmax_scale=1.0)
        return out.view(B, N, H, D).transpose(1, 2)


class Sage(Spelled):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = sageattn

    def forward(self, x: Tensor) -> Any:
        return self.join(self.kernel(*self.qkv(x), sm_scale=1.0))


class SageBranch(Branch):
    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return sageattn(q, k, v, tensor_layout="HND", sm_scale=1.0)


class Flex(Spelled):
    def forward(self, x: Tensor) -> Any:
        return self.join(flex_attention(*self.qkv(x), scale=1.0))


class FlexBranch(Branch):
    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, scale=1.0)


def _neighbours(q: Tensor, k: Tensor, v: Tensor) -> Any:
    q, k, v = (t.unflatten(2, (SIDE, SIDE)) for t in (q, k, v))
    weights = na2d_qk(q, k, kernel_size=2 * SIDE - 1).softmax(dim=-1)
    return na2d_av(weights, v, kernel_size=2 * SIDE - 1).flatten(2, 3)


class Natten(Spelled):
    def forward(self, x: Tensor) -> Any:
        return self.join(_neighbours(*self.qkv(x)))


class NattenBranch(Branch):
    def fused(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return _neighbours(q, k, v)


ALONE: list[tuple[type[nn.Module], str]] = [
    (Flash, "flash_attn_func"),
    (Varlen, "flash_attn_varlen_func"),
    (Sage, "sageattn"),
    (Flex, "flex_attention"),
    (Natten, "na2d_"),
]
BRANCHES: list[type[Branch]] = [FlashBranch, VarlenBranch, SageBranch, FlexBranch, NattenBranch]


@pytest.mark.parametrize("cls", [*(cls for cls, _ in ALONE), *BRANCHES])
def test_the_stub_computes_softmax(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = cls().double(), tokens().double()
    same(model(x), spelled(model, softmax, x))


@pytest.mark.parametrize(("cls", "function"), ALONE)
def test_alone_answered_or_refused_by_name(cls: type[nn.Module], function: str) -> None:
    result = alone(cls, one, spelled)
    assert result in {*REFUSALS, "answered"}
    assert result == "answered" or function in told(cls, one, spelled)


@pytest.mark.parametrize(("cls", "function"), ALONE)
def test_beside_other_attention_never_in_silence(cls: type[nn.Module], function: str) -> None:
    assert beside(cls, one, spelled) in {*REFUSALS, "answered", "named"}


@pytest.mark.parametrize("cls", BRANCHES)
def test_in_the_branch_that_runs(cls: type[nn.Module]) -> None:
    assert alone(cls, one, spelled) in {*REFUSALS, "answered"}


@pytest.mark.parametrize("cls", BRANCHES)
def test_in_the_branch_that_does_not_run(cls: Any) -> None:
    """SDPA runs: answered, or the class is refused for the other branch, which is told."""
    assert alone(lambda: cls(fused=False), one, spelled) in {"refused", "answered"}


class Partly(Branch):
    """Some heads go through the fused function in every forward: half an answer is none."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x)
        one_head = sageattn(q[:, :1], k[:, :1], v[:, :1], sm_scale=1.0)
        rest = F.scaled_dot_product_attention(q[:, 1:], k[:, 1:], v[:, 1:], scale=1.0)
        return self.join(torch.cat([one_head, rest], 1))


def test_half_an_answer_is_none() -> None:
    assert alone(Partly, one, spelled) in {*REFUSALS, "answered"}
