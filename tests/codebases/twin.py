"""The same model with another normalizer, made without attn_plugins: what patched models are compared with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["assert_same_outputs", "normalized_by", "tensors"]


@contextlib.contextmanager
def normalized_by(normalizer: Callable[..., Tensor]) -> Iterator[None]:
    """Within this context torch's own attention and softmax functions are replaced, for every model.

    normalizer: ``(scores, dim) -> weights``, e.g. ``entmax.entmax15``.
    """

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -1e9) if attn_mask.dtype == torch.bool else scores + attn_mask
        if is_causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -1e9)
        return F.dropout(normalizer(scores, dim=-1), dropout_p) @ value

    def softmax(scores: Tensor, dim: int | None = None, *_: Any, dtype: torch.dtype | None = None) -> Tensor:
        assert dim is not None
        return normalizer(scores if dtype is None else scores.to(dtype), dim=dim)

    def in_nn_functional(scores: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
        return softmax(scores, dim, dtype=dtype)

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attention),
        mock.patch.object(F, "softmax", in_nn_functional),
        mock.patch.object(torch, "softmax", softmax),
        mock.patch.object(Tensor, "softmax", softmax),
    ):
        yield


def tensors(output: Any) -> list[Tensor]:
    """All tensors of a model's output, however it is nested."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


def assert_same_outputs(model: nn.Module, expected: Any, run: Callable[[Any], Any], atol: float = 1e-5) -> None:
    """``run(model)`` gives ``expected``: the same tensors within ``atol``, relative to their size."""
    actual, wanted = tensors(run(model)), tensors(expected)
    assert len(actual) == len(wanted) > 0
    for a, b in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=atol * max(1.0, b.detach().abs().max().item()), rtol=0)
