"""xformers' memory_efficient_attention is answered for any class: its layout, its biases, its scale.

The function is a stub that raises on the CPU, as the real one does, so that only an answer can give an output.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attn_plugins

from . import stubs
from .entry import (
    DIM,
    HEADS,
    TOKENS,
    Host,
    Normalize,
    attend,
    built,
    entmax15,
    made,
    merge,
    qkv_of,
    rope,
    softmax,
    tokens,
)
from .stubs import BlockDiagonalMask, LowerTriangularMask, memory_efficient_attention
from .test_zoo import gradients, same

PACKED = [2, 4, 3]


@pytest.fixture(autouse=True)
def packages() -> Iterator[None]:
    with stubs.installed():
        yield


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, heads, D] each, q and k turned by their places."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return rope(q.transpose(1, 2)).transpose(1, 2), rope(k.transpose(1, 2)).transpose(1, 2), v


class Imported(Base):
    """EVA's: the function as a name of the module."""

    def forward(self, x: Tensor, bias: Any = None) -> Any:
        return self.proj(memory_efficient_attention(*self.parts(x), attn_bias=bias).flatten(2))


class OfItsModule(Base):
    """``xops.memory_efficient_attention``, with a bias by position, p and scale."""

    def forward(self, x: Tensor, bias: Any = None) -> Any:
        import xformers.ops as xops

        q, k, v = self.parts(x)
        return self.proj(xops.memory_efficient_attention(q, k, v, bias, p=0.0, scale=(DIM // HEADS) ** -0.5).flatten(2))


class InAttribute(Base):
    def __init__(self) -> None:
        super().__init__()
        self.attn_op = memory_efficient_attention

    def forward(self, x: Tensor, bias: Any = None) -> Any:
        return self.proj(self.attn_op(*self.parts(x), attn_bias=bias).flatten(2))


class Folded(Base):
    """Heads in the batch, [B * heads, N, D], as latent diffusion's code has it."""

    def forward(self, x: Tensor, bias: Any = None) -> Any:
        q, k, v = (t.transpose(1, 2).flatten(0, 1).contiguous() for t in self.parts(x))
        out = memory_efficient_attention(q, k, v, attn_bias=bias)
        return self.proj(out.unflatten(0, (len(x), -1)).transpose(1, 2).flatten(2))


CLASSES = [Imported, OfItsModule, InAttribute, Folded]
DENSE = torch.linspace(-3, 3, 2 * HEADS * TOKENS * TOKENS).sin().view(2, HEADS, TOKENS, TOKENS)


def block_diagonal() -> Tensor:
    owner = torch.repeat_interleave(torch.arange(len(PACKED)), torch.tensor(PACKED))
    return torch.where(owner[:, None] == owner, 0.0, -1e9)


BIASES = {
    "none": (2, None, torch.zeros(())),
    "tensor": (2, DENSE, DENSE),
    "block diagonal": (1, BlockDiagonalMask(PACKED), block_diagonal()),
    "lower triangular": (2, LowerTriangularMask(), torch.full((TOKENS, TOKENS), -1e9).triu(1)),
}

every_call = pytest.mark.parametrize(
    ("cls", "kind"), [(cls, kind) for cls in CLASSES for kind in BIASES if (cls, kind) != (Folded, "tensor")]
)


def reference(m: Any, normalize: Normalize, x: Tensor, bias: Tensor) -> Any:
    q, k, v = qkv_of(m.qkv(x))
    return m.proj(merge(attend(normalize, rope(q), rope(k), v, bias=bias.to(x.dtype))))


def prepared(cls: type[nn.Module], kind: str) -> tuple[Host, Tensor, Any, Tensor]:
    batch, bias, dense = BIASES[kind]
    given = bias.double() if isinstance(bias, Tensor) else bias
    (x,) = made(lambda: (tokens(batch, TOKENS, DIM),))
    return built(cls), x, given, dense


@every_call
def test_unpatched_it_raises(cls: type[nn.Module], kind: str) -> None:
    model, x, bias, _ = prepared(cls, kind)
    with pytest.raises(NotImplementedError, match="No operator found"):
        model(x, bias)
    attn_plugins.patch(model, "entmax15")
    attn_plugins.unpatch(model)
    with pytest.raises(NotImplementedError, match="No operator found"):
        model(x, bias)


@every_call
@pytest.mark.parametrize(("spec", "normalize"), [("softmax", softmax), ("entmax15", entmax15)])
def test_it_is_answered(cls: type[nn.Module], kind: str, spec: str, normalize: Normalize) -> None:
    model, x, bias, dense = prepared(cls, kind)
    expected = reference(model.attn, normalize, x, dense)
    wanted = gradients(model, expected, (x,))
    attn_plugins.patch(model, spec)
    actual = model(x, bias)
    same(actual, expected)
    found = gradients(model, actual, (x,))
    assert found.keys() == wanted.keys()
    for name in wanted:
        same(found[name], wanted[name])


class Crossed(nn.Module):
    """Packed queries ask packed keys of other lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM)

    def forward(self, x: Tensor, y: Tensor, bias: Any) -> Tensor:
        q = self.q(x).unflatten(-1, (HEADS, -1))
        k, v = (t.unflatten(-1, (HEADS, -1)) for t in self.kv(y).chunk(2, -1))
        return memory_efficient_attention(q, k, v, attn_bias=bias).flatten(2)


def test_packed_queries_and_keys_of_other_lengths() -> None:
    model = built(Crossed)
    x, y = made(lambda: (tokens(1, 9, DIM), tokens(1, 6, DIM)))
    per_sequence = []
    for a, b in zip(x.split([2, 4, 3], 1), y.split([1, 2, 3], 1), strict=True):
        (q,), (k, v) = model.attn.q(a).chunk(1, -1), model.attn.kv(b).chunk(2, -1)
        heads = [attend(entmax15, *qkv) for qkv in zip(*(t.chunk(HEADS, -1) for t in (q, k, v)), strict=True)]
        per_sequence.append(torch.cat(heads, -1))
    attn_plugins.patch(model, "entmax15")
    same(model(x, y, BlockDiagonalMask([2, 4, 3], [1, 2, 3])), torch.cat(per_sequence, 1))


def test_describe_names_the_layers() -> None:
    for cls in CLASSES:
        model = built(cls)
        attn_plugins.patch(model, "entmax15")
        assert [(line.path, line.spec) for line in attn_plugins.describe(model)] == [("attn", "entmax15")]


class Both(Base):
    """Its own function and SDPA, whose answer alone must not vouch for both under torch.compile."""

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.parts(x)
        heads = [t.transpose(1, 2) for t in (q, k, v)]
        answer: Tensor = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        twice = memory_efficient_attention(q, k, v) + answer.transpose(1, 2)
        return self.proj(twice.flatten(2))


@pytest.mark.slow
def test_torch_compile_in_one_graph() -> None:
    torch.manual_seed(0)
    model, x = nn.ModuleList([Both()]), tokens()
    attn_plugins.patch(model, "entmax15")
    expected = model[0](x)
    compiled = torch.compile(model[0], fullgraph=True, backend="aot_eager")
    same(compiled(x), expected)
    torch.compiler.reset()
