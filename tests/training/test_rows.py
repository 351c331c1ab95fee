"""The few rows that are computed again are rows of the weights that the call has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attn_plugins import attention
from attn_plugins.attention import AttentionCall
from attn_plugins.functional import EntmaxAlpha, bind
from attn_plugins.training.rows import rows_of_call, rows_of_weights, summarise


def tensors(*shape: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(*shape) for _ in range(3)]


def call(q: Tensor, k: Tensor, v: Tensor, normalizer: Any = "entmax15", **options: Any) -> AttentionCall:
    function = bind(normalizer) if isinstance(normalizer, str) else normalizer
    return AttentionCall(q, k, v, function, getattr(function, "alpha", None), scale=q.shape[-1] ** -0.5, **options)


@pytest.mark.parametrize("normalizer", ["softmax", "entmax15", "sparsemax", "entmax:alpha=1.3"])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
def test_rows_are_those_of_the_whole_maps(normalizer: str, mask: str) -> None:
    q, k, v = tensors(3, 2, 9, 8)
    options: dict[str, Any] = {"is_causal": True} if mask == "causal" else {}
    if mask == "bool":
        options["attn_mask"] = torch.rand(3, 1, 9, 9) > 0.3
    elif mask == "float":
        options["attn_mask"] = torch.randn(9, 9)
    _, whole = attention(q, k, v, normalizer=normalizer, return_weights=True, **options)
    rows = rows_of_call(call(q, k, v, normalizer, **options), images=2, rows=4)
    torch.testing.assert_close(rows, whole[:2, :, [0, 2, 5, 8]])


def test_a_tensor_of_alphas_has_one_for_every_head() -> None:
    q, k, v = tensors(2, 3, 7, 8)
    normalizer = EntmaxAlpha(3, init=1.2)
    _, whole = attention(q, k, v, normalizer=normalizer, return_weights=True)
    torch.testing.assert_close(rows_of_call(call(q, k, v, normalizer), images=2, rows=7), whole.detach())


def test_of_a_packed_batch_the_first_sequences_of_equal_length_are_taken() -> None:
    q, k, v = tensors(1, 2, 3 * 5 + 2 * 3, 8)
    rows = rows_of_call(call(q, k, v, lengths=(5, 5, 5, 3, 3)), images=2, rows=5)
    for image in range(2):
        a, b, c = (t[:, :, 5 * image : 5 * image + 5] for t in (q, k, v))
        _, whole = attention(a, b, c, normalizer="entmax15", return_weights=True)
        torch.testing.assert_close(rows[image], whole[0])


def test_autocast_rounds_nothing_that_the_kernel_does_not_round() -> None:
    q, k, v = (t.bfloat16() for t in tensors(2, 2, 40, 16))
    with torch.autocast("cpu", torch.bfloat16):
        rows = rows_of_call(call(q, k, v), images=2, rows=40)
    assert rows.dtype == torch.float32
    _, whole = attention(q.float(), k.float(), v.float(), normalizer="entmax15", return_weights=True)
    torch.testing.assert_close(rows, whole)


def test_materialised_weights_with_heads_in_the_batch() -> None:
    weights = torch.rand(4 * 2, 5, 6)
    torch.testing.assert_close(rows_of_weights(weights, 2, images=3, rows=5), weights.view(4, 2, 5, 6)[:3])
    torch.testing.assert_close(
        rows_of_weights(weights.view(4, 2, 5, 6), None, 1, 2), weights.view(4, 2, 5, 6)[:1, :, ::4]
    )


def test_the_summary_by_hand() -> None:
    weights = torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]]).expand(1, 3, 2, 4)
    zero_share, entropy, support, cls_mass = summarise(weights, prefix=1)
    torch.testing.assert_close(zero_share, torch.full((3,), 0.25))
    torch.testing.assert_close(entropy, torch.full((3,), 1.5).mul(torch.tensor(2.0).log()))
    torch.testing.assert_close(support, torch.full((3,), 3.0))
    torch.testing.assert_close(cls_mass, torch.full((3,), 0.5))
