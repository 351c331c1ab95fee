"""Other people's kernels: registered, asked first, used by every patched model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attn_plugins
from attn_plugins import AttentionCall, Backend
from attn_plugins.attention import choose_backend, reference
from attn_plugins.attention.backend import BACKENDS


@pytest.fixture(autouse=True)
def new_names() -> Iterator[None]:
    with BACKENDS.temporarily():
        yield


class Toy:
    """Computes what the reference does, and counts; sparsemax without dropout only."""

    def __init__(self, packed: bool = False) -> None:
        self.calls: list[AttentionCall] = []
        attn_plugins.register_backend(Backend("toy", self.run, self.unsupported, packed))

    def run(self, call: AttentionCall) -> Tensor:
        self.calls.append(call)
        return reference.run(call)

    def unsupported(self, call: AttentionCall) -> str | None:
        if call.alpha != 2.0:
            return "it computes sparsemax only"
        return "it has no dropout" if call.dropout_p > 0 else None


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def names() -> list[str]:
    return [backend.name for backend in reversed(BACKENDS.values())]


def test_the_order_is_the_documented_one() -> None:
    assert names() == ["sdpa", "cpu", "triton", "reference"]
    toy = Toy()
    attn_plugins.register_backend(Backend("later", toy.run, lambda call: "never"))
    assert names() == ["later", "toy", "sdpa", "cpu", "triton", "reference"]


def test_it_is_used_where_it_can_and_nowhere_else() -> None:
    q = tokens(2, 3, 5, 8)
    expected = attn_plugins.attention(q, q, q, normalizer="sparsemax")
    toy = Toy()
    torch.testing.assert_close(attn_plugins.attention(q, q, q, normalizer="sparsemax"), expected)
    assert len(toy.calls) == 1
    attn_plugins.attention(q, q, q, normalizer="entmax15")
    attn_plugins.attention(q, q, q, normalizer="sparsemax", dropout_p=0.5)
    attn_plugins.attention(q, q, q, normalizer="sparsemax", backend="cpu")
    assert len(toy.calls) == 1
    assert attn_plugins.attention(q, q, q, normalizer="sparsemax", backend="TOY") is not None and len(toy.calls) == 2
    with pytest.raises(ValueError, match="'toy' cannot run this call: it computes sparsemax only"):
        attn_plugins.attention(q, q, q, backend="toy")


@pytest.mark.parametrize("packed", [True, False])
def test_packed_batches(packed: bool) -> None:
    toy, q = Toy(packed), tokens(1, 3, 9, 8)
    out = attn_plugins.attention(q, q, q, [4, 5], normalizer="sparsemax", backend="toy" if not packed else "cpu")
    expected = attn_plugins.attention(q, q, q, [4, 5], normalizer="sparsemax", backend="reference")
    torch.testing.assert_close(out, expected)
    if packed:
        call = AttentionCall(q, q, q, torch.softmax, 2.0, lengths=(4, 5))
        assert choose_backend(call).packed
    else:
        assert [call.query.shape[-2] for call in toy.calls] == [4, 5]


def test_a_patched_model_uses_it_and_says_so() -> None:
    toy, x = Toy(), tokens(5, 2, 12)
    mha = attn_plugins.patch(nn.MultiheadAttention(12, 3), "sparsemax")
    assert [line.backend for line in attn_plugins.describe(mha)] == ["toy"]
    mha(x, x, x, need_weights=False)
    assert len(toy.calls) == 1
    assert [line.backends for line in attn_plugins.verify(mha.eval(), x, x, x, need_weights=False)] == [{"toy"}]


def test_a_wrong_kernel_is_found_by_verify() -> None:
    attn_plugins.register_backend(Backend("wrong", lambda call: 1.01 * reference.run(call)))
    mha, x = attn_plugins.patch(nn.MultiheadAttention(12, 3).eval(), "entmax15"), tokens(5, 2, 12)
    found = attn_plugins.verify(mha, x, x, x, need_weights=False).problems
    assert any("wrong is off the reference" in problem for problem in found)


def test_compiled() -> None:
    toy, q = Toy(), tokens(1, 2, 4, 8)

    def run(q: Tensor) -> Tensor:
        return attn_plugins.attention(q, q, q, normalizer="sparsemax")

    compiled: Any = torch.compile(run, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q), attn_plugins.attention(q, q, q, normalizer="sparsemax", backend="cpu"))
    assert len(toy.calls) == 1


@pytest.mark.parametrize(("name", "message"), [("sdpa", "already"), ("CPU", "case"), ("auto", "chooses one")])
def test_names_that_are_taken(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attn_plugins.register_backend(Backend(name, reference.run))


def test_unknown_ones() -> None:
    q = tokens(1, 1, 2, 4)
    with pytest.raises(ValueError, match="unknown backend 'flash'; choose auto or one of sdpa, cpu, triton, reference"):
        attn_plugins.attention(q, q, q, backend="flash")


def test_entmax_of_alpha_one_is_softmax() -> None:
    q = tokens(2, 3, 5, 8)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    mask[0] = False
    with_and_without: list[dict[str, Any]] = [{}, {"attn_mask": mask}]
    for arguments in with_and_without:
        expected = attn_plugins.attention(q, q, q, **arguments)
        for backend in ("auto", "reference"):
            out = attn_plugins.attention(q, q, q, normalizer="entmax:alpha=1", backend=backend, **arguments)
            torch.testing.assert_close(out, expected)
    mha = attn_plugins.patch(nn.MultiheadAttention(12, 3), "entmax:alpha=1")
    assert [(line.spec, line.backend) for line in attn_plugins.describe(mha)] == [("entmax:alpha=1", "sdpa")]
    scores = tokens(4, 6).masked_fill(tokens(4, 6) > 1, -torch.inf)
    expected = attn_plugins.functional.softmax(scores)
    torch.testing.assert_close(attn_plugins.functional.entmax(scores, 1.0), expected, rtol=0, atol=0)
