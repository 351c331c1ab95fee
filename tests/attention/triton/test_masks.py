"""Key-padding and causal masks, packed batches."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers.triton_cases import DEVICE, check, qkv
from torch import Tensor

from attn_plugins import attention


def run(normalizer: str = "entmax15", **kwargs: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, v: attention(q, k, v, normalizer=normalizer, backend="triton", **kwargs)


@pytest.mark.parametrize("tokens,dtype", [(40, torch.float32), (75, torch.float16), (270, torch.float16)])
def test_key_padding(tokens: int, dtype: torch.dtype) -> None:
    keep = torch.rand(2, 1, 1, tokens, device=DEVICE) > 0.4
    keep[..., -1] = True
    check(run(attn_mask=keep), qkv(2, 1, tokens, 16, dtype), 1.5, dtype, keep=keep)


def test_key_padding_that_was_expanded_or_has_no_batch() -> None:
    keep = torch.tensor([True] * 9 + [False] * 11, device=DEVICE)
    tensors = qkv(2, 2, 20, 16)
    for mask in (keep, keep.expand(20, 20), keep.expand(2, 2, 20, 20)):
        check(run(attn_mask=mask), tensors, 1.5, torch.float32, keep=keep)


def test_a_sequence_without_keys_gives_zeros() -> None:
    keep = torch.ones(2, 1, 1, 20, dtype=torch.bool, device=DEVICE)
    keep[1] = False
    for dtype in (torch.float32, torch.float16):
        out = check(run(attn_mask=keep), qkv(2, 1, 20, 16, dtype), 1.5, dtype, keep=keep)
        assert not out[1].any()


@pytest.mark.parametrize("tokens,dtype", [(50, torch.float32), (50, torch.float16), (270, torch.float16)])
def test_causal(tokens: int, dtype: torch.dtype) -> None:
    keep = torch.ones(tokens, tokens, dtype=torch.bool, device=DEVICE).tril()
    check(run(is_causal=True), qkv(1, 1, tokens, 16, dtype), 1.5, dtype, keep=keep)


@pytest.mark.parametrize("sizes", [(30, 47), (47, 30)])
def test_causal_with_other_numbers_of_keys(sizes: tuple[int, int]) -> None:
    q, k, v = (torch.randn(1, 1, n, 16, device=DEVICE, requires_grad=True) for n in (sizes[0], sizes[1], sizes[1]))
    keep = torch.ones(sizes, dtype=torch.bool, device=DEVICE).tril()
    check(run(is_causal=True), (q, k, v), 1.5, torch.float32, keep=keep)


def block_diagonal(lengths: Sequence[int]) -> Tensor:
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(DEVICE)
    return owner[:, None] == owner[None, :]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("lengths", [(20, 20, 5, 5, 5), (1, 66, 0, 3), (37,)])
@pytest.mark.parametrize("normalizer,alpha", [("entmax15", 1.5), ("sparsemax", 2.0)])
def test_packed(lengths: tuple[int, ...], normalizer: str, alpha: float, dtype: torch.dtype) -> None:
    tensors = qkv(1, 2, sum(lengths), 16, dtype)
    check(run(normalizer, attn_mask=list(lengths)), tensors, alpha, dtype, keep=block_diagonal(lengths))


@pytest.mark.slow
def test_packed_with_long_sequences() -> None:
    """As DINOv2's nested batch: global crops that stream keys and local crops that fit on chip, in one launch."""
    lengths = (257, 257, 50, 50, 50)
    tensors = qkv(1, 1, sum(lengths), 16, torch.float16)
    check(run(attn_mask=list(lengths)), tensors, 1.5, torch.float16, keep=block_diagonal(lengths))


def test_packed_and_causal() -> None:
    lengths = (20, 33)
    keep = block_diagonal(lengths) & torch.ones(53, 53, dtype=torch.bool, device=DEVICE).tril()
    check(run(attn_mask=list(lengths), is_causal=True), qkv(2, 1, 53, 16), 1.5, torch.float32, keep=keep)
