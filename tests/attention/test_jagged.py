"""Jagged nested tensors: each sequence as if it were alone, with gradients, as F.scaled_dot_product_attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attn_plugins

NORMALIZERS = ("softmax", "entmax15", "sparsemax", "entmax:alpha=1.3")
# "is_nested" tensors print a warning of their prototype state.
pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors.*")


def jagged(*lengths: int, heads: int = 2, dim: int = 4) -> Any:
    """``[B, j, H, D]``."""
    rows = [torch.randn(length, heads, dim) for length in lengths]
    return torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)


def alone(q: Any, k: Any, v: Any, **options: Any) -> list[Tensor]:
    sequences = zip(q.unbind(), k.unbind(), v.unbind(), strict=True)
    return [attn_plugins.attention(*(t.transpose(0, 1)[None] for t in each), **options)[0] for each in sequences]


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [(3, 5, 5, 1), (2, 7, 4, 6)], ids=["self", "cross"])
def test_each_sequence_is_alone(normalizer: str, causal: bool, keys: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensors = (jagged(3, 5, 5, 1), jagged(*keys), jagged(*keys, dim=6))
    options: dict[str, Any] = {"normalizer": normalizer, "is_causal": causal}
    q, k, v = (t.transpose(1, 2) for t in tensors)
    out = attn_plugins.attention(q, k, v, **options)
    expected = alone(*tensors, **options)
    assert out.layout is torch.jagged and out.dim() == 4
    for a, b in zip(out.unbind(), expected, strict=True):
        assert (a - b).abs().max() <= 1e-5
    found = torch.autograd.grad(out.values().square().sum(), tensors)
    wanted = torch.autograd.grad(torch.stack([t.square().sum() for t in expected]).sum(), tensors)
    for a, b in zip(found, wanted, strict=True):
        assert (a.values() - b.values()).abs().max() <= 1e-4


def test_equals_torchs_softmax() -> None:
    rows, offsets = torch.randn(3, 8, 2, 4), torch.tensor([0, 3, 8])
    q, k, v = (torch.nested.nested_tensor_from_jagged(each, offsets).transpose(1, 2) for each in rows)
    theirs = F.scaled_dot_product_attention(q, k, v)
    assert (attn_plugins.attention(q, k, v).values() - theirs.values()).abs().max() <= 1e-5


def test_grouped_queries() -> None:
    q, k = jagged(3, 5, heads=4), jagged(3, 5)
    options: dict[str, Any] = {"normalizer": "entmax15", "enable_gqa": True}
    out = attn_plugins.attention(*(t.transpose(1, 2) for t in (q, k, k)), **options)
    for a, b in zip(out.unbind(), alone(q, k, k, **options), strict=True):
        assert (a - b).abs().max() <= 1e-5


def test_what_does_not_fit_is_one_error() -> None:
    q = jagged(3, 5).transpose(1, 2)
    dense = torch.randn(2, 2, 5, 4)
    strided = torch.nested.nested_tensor([torch.randn(2, 3, 4), torch.randn(2, 5, 4)])
    for tensors, named in [
        ((strided, strided, strided), "torch.strided"),
        ((q, dense, dense), "key is a dense tensor"),
        ((dense, q, q), "query is a dense tensor"),
        ((jagged(3, 5),) * 3, "ragged in the third"),
        ((q, jagged(3, 5, 1).transpose(1, 2), jagged(3, 5, 1).transpose(1, 2)), "do not fit together"),
    ]:
        with pytest.raises(ValueError, match=named):
            attn_plugins.attention(*tensors, normalizer="entmax15")
    with pytest.raises(ValueError, match="no attn_mask"):
        attn_plugins.attention(q, q, q, torch.ones(5, 5).bool(), normalizer="entmax15")
    with pytest.raises(ValueError, match="return_weights"):
        attn_plugins.attention(q, q, q, normalizer="entmax15", return_weights=True)
