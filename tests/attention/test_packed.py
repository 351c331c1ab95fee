"""Packed (block-diagonal) batches equal their sequences one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attn_plugins import attention


@pytest.mark.parametrize("normalizer", ["softmax", "entmax15", "entmax:alpha=1.3"])
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 20), max_size=6), repeat=st.integers(1, 3), batch=st.integers(1, 2))
def test_equals_each_sequence_alone(normalizer: str, lengths: list[int], repeat: int, batch: int) -> None:
    lengths = [n for n in lengths for _ in range(repeat)]
    generator = torch.Generator().manual_seed(sum(lengths))
    q, k, v = (torch.randn(batch, 3, sum(lengths), 8, generator=generator).requires_grad_() for _ in range(3))
    out = attention(q, k, v, lengths, normalizer=normalizer)
    alone = [
        attention(*parts, normalizer=normalizer)
        for parts in zip(*(t.split(lengths, dim=-2) for t in (q, k, v)), strict=True)
        if parts[0].shape[-2]
    ]
    assert out.shape == v.shape
    if not alone:
        return
    wanted = torch.cat(alone, dim=-2)
    torch.testing.assert_close(out, wanted, atol=2e-6, rtol=0)
    grad = torch.randn(out.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad(out, (q, k, v), grad), torch.autograd.grad(wanted, (q, k, v), grad), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_is_causal_holds_within_each_sequence() -> None:
    q, k, v = (torch.randn(1, 2, 12, 4) for _ in range(3))
    out = attention(q, k, v, [5, 7], is_causal=True, normalizer="entmax15")
    second = attention(q[:, :, 5:], k[:, :, 5:], v[:, :, 5:], is_causal=True, normalizer="entmax15")
    torch.testing.assert_close(out[:, :, 5:], second)


def test_cross_sequence_scores_are_never_computed() -> None:
    seen = []

    def watched(scores: Tensor, dim: int = -1) -> Tensor:
        seen.append(scores.numel())
        return torch.softmax(scores, dim)

    q = torch.randn(1, 2, 100, 4)
    attention(q, q, q, [10] * 10, normalizer=watched)
    assert sum(seen) == 2 * 10 * 10 * 10


@pytest.mark.parametrize("lengths", [[3, 3], [8], [-1, 6], [5, 0, 1]])
def test_lengths_that_do_not_cover_the_tokens_are_refused(lengths: list[int]) -> None:
    q = torch.zeros(1, 1, 5, 4)
    with pytest.raises(ValueError, match=r"packed lengths .* but there are 5 queries"):
        attention(q, q, q, lengths)
