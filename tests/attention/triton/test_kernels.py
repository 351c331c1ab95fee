"""Forward and backward of the kernels against the entmax package in float64."""

from functools import partial
from typing import Any

import pytest
import torch
from helpers.triton_cases import DEVICE, check, expected, qkv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attn_plugins import attention
from attn_plugins.attention.triton import tuning
from attn_plugins.functional import entmax_alpha

NAMES = {1.5: "entmax15", 2.0: "sparsemax"}


def run(q: Tensor, k: Tensor, v: Tensor, alpha: float = 1.5, **kwargs: Any) -> Tensor:
    out: Tensor = attention(q, k, v, normalizer=NAMES.get(alpha, f"entmax:alpha={alpha}"), backend="triton", **kwargs)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.3])
@pytest.mark.parametrize("tokens", [1, 17, 64, 90])
def test_equals_entmax(tokens: int, alpha: float, dtype: torch.dtype) -> None:
    check(lambda q, k, v: run(q, k, v, alpha), qkv(1, 2, tokens, 16, dtype), alpha, dtype)


@pytest.mark.parametrize("dim", [8, 24, 72, 80, 96, 128])
def test_any_head_width(dim: int) -> None:
    check(run, qkv(1, 1, 21, dim), 1.5, torch.float32)


def test_values_may_be_wider_than_keys_and_fewer_than_queries() -> None:
    q, k, v = (torch.randn(2, 2, n, d, device=DEVICE, requires_grad=True) for n, d in ((33, 16), (19, 16), (19, 40)))
    check(run, (q, k, v), 1.5, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("tokens", [257, 300])
def test_rows_that_are_longer_than_the_tile_on_chip(tokens: int, alpha: float) -> None:
    """Half precision streams keys in blocks of 64 in the forward, of 64 in both backward kernels."""
    check(lambda q, k, v: run(q, k, v, alpha), qkv(1, 1, tokens, 16, torch.float16, 2.0), alpha, torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["forward", "queries", "keys", "short"])
@pytest.mark.parametrize("length", [64, 320])
def test_every_block_choice_computes_the_same(kernel: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (length, 16, 2, False)
    if kernel == "short" and not tuning.whole_head_fits(length, 16, 2, 90):
        length, shape = 128, (128, 16, 2, False)
    configs = tuning.choices(kernel, *shape)
    original = tuning.choices
    if kernel in ("queries", "keys"):
        monkeypatch.setattr(tuning, "whole_head_fits", lambda *args: False)
    monkeypatch.setattr(tuning, "measured", lambda: False)
    # Lengths that end a block early, so that every choice meets a partial one.
    tensors = qkv(1, 1, length - 7 if length <= 128 else 265, 16, torch.float16)
    assert configs
    for config in configs:
        monkeypatch.setattr(tuning, "choices", lambda name, *a, c=config: [c] if name == kernel else original(name, *a))
        check(run, tensors, 1.5, torch.float16)


def test_tiles_without_weight_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five groups of tokens that see only their own group: most tiles of 64 by 64 are empty."""
    original = tuning.choices
    monkeypatch.setattr(tuning, "measured", lambda: False)
    monkeypatch.setattr(
        tuning, "choices", lambda *args: sorted(original(*args), key=lambda c: not c.kwargs.get("SKIP"))
    )
    group = torch.eye(16, device=DEVICE)[torch.arange(300, device=DEVICE) // 60] * 12
    q, k, v = ((torch.randn(1, 1, 300, 16, device=DEVICE) + shift).half() for shift in (group, group, 0))
    tensors = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_())
    check(run, tensors, 1.5, torch.float16)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    tokens=st.integers(1, 50),
    keys=st.integers(1, 50),
    dim=st.integers(1, 40),
    alpha=st.sampled_from([1.5, 2.0, 1.15, 1.75]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    seed=st.integers(0, 2**20),
)
def test_any_shape_and_spread(
    batch: int, heads: int, tokens: int, keys: int, dim: int, alpha: float, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = (tokens, keys, keys)
    q, k, v = (torch.randn(batch, heads, n, dim, generator=generator).to(DEVICE).requires_grad_() for n in sizes)
    q = (q * spread).detach().requires_grad_()
    check(partial(run, alpha=alpha), (q, k, v), alpha, torch.float32)


def test_a_scale_of_ones_own() -> None:
    check(lambda q, k, v: run(q, k, v, scale=0.7), qkv(1, 2, 20, 16), 1.5, torch.float32, scale=0.7)


class PerHead:
    """What the dispatcher needs of a normalizer with one exponent a head."""

    def __init__(self, alpha: Tensor) -> None:
        self.alpha = alpha

    def __call__(self, scores: Tensor, dim: int = -1) -> Tensor:
        return entmax_alpha(scores, self.alpha.view(-1, 1, 1), dim)


def test_learnable_alpha_has_its_gradient() -> None:
    """Against bisection and finite differences in float64, two heads with different exponents."""
    q, k, v = qkv(2, 2, 40, 16)
    alphas = torch.tensor([1.3, 1.7], device=DEVICE, requires_grad=True)
    out = attention(q, k, v, normalizer=PerHead(alphas), backend="triton")
    grad = torch.randn_like(out)
    (actual,) = torch.autograd.grad(out, alphas, grad, retain_graph=True)
    for head, alpha in enumerate(alphas.detach().double().tolist()):
        one = (q[:, head : head + 1], k[:, head : head + 1], v[:, head : head + 1])
        reference = expected(*one, alpha)[0]
        torch.testing.assert_close(out[:, head : head + 1].double(), reference, atol=1e-5, rtol=1e-5)
        above, below = (expected(*one, alpha + step)[0] for step in (1e-5, -1e-5))
        slope = ((above - below) / 2e-5 * grad[:, head : head + 1].double()).sum()
        torch.testing.assert_close(actual[head].double(), slope, atol=1e-3, rtol=1e-3)


def test_nan_reaches_the_output_of_its_row_only() -> None:
    q, k, v = (t.detach().clone() for t in qkv(1, 1, 20, 16))
    q[0, 0, 3, 0] = torch.nan
    lost = run(q, k, v).isnan().any(-1)[0, 0]
    assert lost.nonzero().flatten().tolist() == [3]


def test_gradients_do_not_depend_on_the_run() -> None:
    tensors = qkv(1, 2, 90, 16, torch.float16)
    out = run(*tensors)
    grad = torch.randn_like(out)
    first, second = (torch.autograd.grad(out, tensors, grad, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
