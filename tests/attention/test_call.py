"""``attention`` takes what ``F.scaled_dot_product_attention`` takes, for every normalizer and backend."""

from typing import Any

import entmax as peer
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attn_plugins import attention
from attn_plugins.functional import EntmaxAlpha

INF = float("inf")


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected(
    q: Tensor, k: Tensor, v: Tensor, alpha: float | Tensor, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attention by the entmax package, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias.double()
    if isinstance(alpha, float) and alpha == 1:
        return scores.softmax(-1) @ v
    out: Tensor = peer.entmax_bisect(scores, alpha, dim=-1, n_iter=80) @ v
    return out


backends = pytest.mark.parametrize("backend", ["cpu", "reference"])


@pytest.mark.parametrize("alpha", [1.0, 1.5])
@pytest.mark.parametrize("scale", [0.0, -0.5, -1])
def test_a_causal_mask_hides_keys_whatever_the_scale(scale: float, alpha: float) -> None:
    q, k, v = randn(0, 2, 3, 5, 8), randn(1, 2, 3, 7, 8), randn(2, 2, 3, 7, 8)
    bias = torch.full((5, 7), -INF).triu(1)
    out = attention(q, k, v, normalizer=f"entmax:alpha={alpha}", is_causal=True, scale=scale)
    torch.testing.assert_close(out.double(), expected(q, k, v, alpha, bias, scale), rtol=0, atol=1e-6)


@backends
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 70),
    keys=st.integers(1, 70),
    dim=st.integers(1, 40),
    value_dim=st.integers(1, 40),
    alpha=st.sampled_from([1.5, 2.0, 1.1, 1.33, 1.9]),
    mask=st.sampled_from(["none", "bool", "float", "causal", "keys only", "head only"]),
    sharpness=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_output_and_gradients(
    backend: str,
    seed: int,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    dim: int,
    value_dim: int,
    alpha: float,
    mask: str,
    sharpness: float,
) -> None:
    q = randn(seed, batch, heads, queries, dim).mul(sharpness).requires_grad_()
    k, v = randn(seed + 1, batch, heads, keys, dim), randn(seed + 2, batch, heads, keys, value_dim)
    k.requires_grad_(), v.requires_grad_()
    arguments: dict[str, Any] = {}
    bias = None
    if mask == "bool":
        keep = randn(seed + 3, batch, heads, queries, keys) > -0.5
        keep[..., 0] = True
        arguments["attn_mask"], bias = keep, torch.zeros(keep.shape).masked_fill(~keep, -INF)
    elif mask == "causal":
        arguments["is_causal"] = True
        bias = torch.full((queries, keys), -INF).triu(1)
    elif mask != "none":
        shape = {
            "float": (batch, heads, queries, keys),
            "keys only": (batch, 1, 1, keys),
            "head only": (heads, 1, keys),
        }
        bias = arguments["attn_mask"] = randn(seed + 3, *shape[mask])
    out = attention(q, k, v, normalizer=f"entmax:alpha={alpha}", backend=backend, **arguments)
    wanted = expected(q, k, v, alpha, bias)
    assert out.shape == wanted.shape
    # The scores themselves are rounded to float32, and sharper scores have larger roundings.
    tolerance = 2e-5 * max(1.0, sharpness)
    assert (out - wanted).abs().max() <= tolerance
    if alpha <= 1.5:  # beyond, the derivative jumps or is steep at the edge of the support: see test_autograd
        grad = randn(seed + 4, *out.shape)
        for a, b in zip(
            torch.autograd.grad(out, (q, k, v), grad),
            torch.autograd.grad(wanted, (q, k, v), grad.double()),
            strict=True,
        ):
            assert (a - b).abs().max() <= 10 * tolerance * (1 + b.abs().max())


def test_softmax_equals_torch() -> None:
    q, k, v = (randn(i, 2, 3, 17, 8) for i in range(3))
    mask = randn(3, 2, 1, 17, 17)
    for arguments in ({}, {"attn_mask": mask}, {"attn_mask": mask > -1}, {"is_causal": True}, {"scale": 0.3}):
        wanted = F.scaled_dot_product_attention(q, k, v, **arguments)
        for backend in ("auto", "reference"):
            torch.testing.assert_close(attention(q, k, v, backend=backend, **arguments), wanted)
    torch.manual_seed(0)
    wanted = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(0)
    assert torch.equal(attention(q, k, v, dropout_p=0.5), wanted)


@backends
def test_leading_dimensions_broadcast_as_in_torch(backend: str) -> None:
    q, k, v = randn(0, 2, 5, 3, 7, 8), randn(1, 1, 1, 3, 9, 8), randn(2, 5, 1, 9, 6)
    out = attention(q, k, v, normalizer="entmax15", backend=backend)
    torch.testing.assert_close(out.double(), expected(q, k, v, 1.5), atol=1e-5, rtol=0)
    for shape in ((7, 8), (3, 7, 8)):
        x = randn(3, *shape)
        out = attention(x, x, x, normalizer="sparsemax", backend=backend)
        torch.testing.assert_close(out.double(), expected(x, x, x, 2.0), atol=1e-5, rtol=0)


@backends
def test_grouped_heads(backend: str) -> None:
    q, k, v = randn(0, 2, 6, 5, 8), randn(1, 2, 3, 9, 8), randn(2, 2, 3, 9, 4)
    out = attention(q, k, v, enable_gqa=True, normalizer="entmax15", backend=backend)
    wanted = expected(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), 1.5)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=0)


@backends
def test_a_qkv_projection_is_taken_as_it_lies(backend: str) -> None:
    qkv = randn(0, 2, 11, 3, 4, 8).requires_grad_()
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = attention(q, k, v, normalizer="entmax15", backend=backend)
    wanted = expected(q, k, v, 1.5)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=0)
    grad = randn(1, 2, 11, 32)
    (found,) = torch.autograd.grad(out.transpose(1, 2).reshape(2, 11, 32), qkv, grad)
    (right,) = torch.autograd.grad(wanted.transpose(1, 2).reshape(2, 11, 32), qkv, grad.double())
    torch.testing.assert_close(found, right, atol=1e-5, rtol=0)
    assert backend != "cpu" or out.transpose(1, 2).is_contiguous(), "joining the heads would copy"


@backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(backend: str, dtype: torch.dtype) -> None:
    q, k, v = (randn(i, 2, 3, 17, 8, dtype=dtype).requires_grad_() for i in range(3))
    out = attention(q, k, v, normalizer="entmax15", backend=backend)
    assert out.dtype == dtype
    wanted = expected(q, k, v, 1.5)
    assert (out - wanted).abs().max() <= 3e-2
    for a, b in zip(
        torch.autograd.grad(out.sum(), (q, k, v)), torch.autograd.grad(wanted.sum(), (q, k, v)), strict=True
    ):
        assert a.dtype == dtype and (a - b).abs().max() <= 5e-2


def test_float64_keeps_its_digits() -> None:
    q, k, v = (randn(i, 2, 3, 17, 8).double().requires_grad_() for i in range(3))
    assert (attention(q, k, v, normalizer="entmax15") - expected(q, k, v, 1.5)).abs().max() <= 1e-10
    small = [randn(i, 1, 2, 4, 3).double().requires_grad_() for i in range(3)]
    assert torch.autograd.gradcheck(lambda *x: attention(*x, normalizer="entmax15"), small)
    assert torch.autograd.gradgradcheck(lambda *x: attention(*x, normalizer="entmax15"), small)


@backends
@pytest.mark.parametrize("normalizer", ["softmax", "entmax15", "sparsemax", "entmax:alpha=1.3"])
def test_masked_queries_and_nan(backend: str, normalizer: str) -> None:
    backend = "reference" if normalizer == "softmax" else backend
    q, k, v = (randn(i, 1, 2, 20, 8).requires_grad_() for i in range(3))
    keep = torch.ones(20, 20, dtype=torch.bool)
    keep[3], keep[:, 7] = False, False
    out = attention(q, k, v, attn_mask=keep, normalizer=normalizer, backend=backend)
    dq, dk, dv = torch.autograd.grad(out.sum(), (q, k, v))
    assert (out[:, :, 3] == 0).all() and (dq[:, :, 3] == 0).all()
    assert (dk[:, :, 7] == 0).all() and (dv[:, :, 7] == 0).all()
    assert all(t.isfinite().all() for t in (out, dq, dk, dv))
    poisoned = q.detach().clone()
    poisoned[0, 1, 5] = float("nan")
    out2 = attention(poisoned, k, v, attn_mask=keep, normalizer=normalizer, backend=backend)
    assert out2[0, 1, 5].isnan().all()
    others = torch.ones(2, 20, dtype=torch.bool)
    others[1, 5] = False
    assert torch.equal(out2[0][others], out[0][others])


@backends
def test_learnable_alpha_gets_its_gradient(backend: str) -> None:
    module = EntmaxAlpha(3)
    with torch.no_grad():
        module.logit.copy_(torch.tensor([-2.0, 0.0, 1.5]))
    q, k, v, grad = (randn(i, 4, 3, 30, 8) for i in range(4))
    out = attention(q, k, v, normalizer=module, backend=backend)
    (found,) = torch.autograd.grad(out, module.logit, grad)
    alpha = module.alpha.double().view(1, 3, 1, 1)
    wanted = expected(q, k, v, alpha.expand(4, 3, 30, 1))
    (right,) = torch.autograd.grad(wanted, module.logit, grad.double())
    torch.testing.assert_close(out.double(), wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(found, right, atol=2e-3, rtol=1e-3)


def test_a_learnable_mask_gets_its_gradient() -> None:
    q, k, v = (randn(i, 2, 3, 9, 8) for i in range(3))
    bias = randn(3, 3, 9, 9).requires_grad_()
    (found,) = torch.autograd.grad(attention(q, k, v, bias, normalizer="entmax15").sum(), bias)
    (right,) = torch.autograd.grad(expected(q, k, v, 1.5, bias).sum(), bias)
    torch.testing.assert_close(found, right.float(), atol=1e-5, rtol=0)


def test_dropout_drops_whole_weights_and_keeps_the_mean() -> None:
    q, k = randn(0, 1, 1, 2000, 4), randn(1, 1, 1, 5, 4)
    eye = torch.eye(5).expand(1, 1, 5, 5)
    torch.manual_seed(0)
    weights = attention(q, k, eye, normalizer="entmax15")
    dropped = attention(q, k, eye, dropout_p=0.25, normalizer="entmax15")
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75)
    assert abs((kept.sum() / (weights != 0).sum()).item() - 0.75) < 0.02


def test_return_weights() -> None:
    q, k, v = (randn(i, 2, 3, 9, 8) for i in range(3))
    out, weights = attention(q, k, v, normalizer="entmax15", return_weights=True)
    torch.testing.assert_close(weights @ v, out)
    torch.testing.assert_close(out, attention(q, k, v, normalizer="entmax15"), atol=1e-5, rtol=0)
    assert (weights == 0).any()


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 0, 4)])
def test_empty_batches(shape: tuple[int, int, int, int]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    out = attention(x, x, x, normalizer="entmax15")
    out.sum().backward()
    assert x.grad is not None and out.shape == x.grad.shape == shape


def test_what_does_not_fit_is_refused() -> None:
    q = torch.zeros(1, 2, 5, 4)
    with pytest.raises(ValueError, match="do not fit together"):
        attention(q, torch.zeros(1, 2, 5, 3), q, normalizer="entmax15", backend="cpu")
    with pytest.raises(ValueError, match="do not fit together"):
        attention(q, q, torch.zeros(1, 2, 6, 4), normalizer="entmax15", backend="cpu")
    with pytest.raises(ValueError, match=r"alpha of shape \(3,\) is not one value for each of 2 heads"):
        attention(q, q, q, normalizer=EntmaxAlpha(3), backend="cpu")
    with pytest.raises(ValueError, match="it has no dropout"):
        attention(q, q, q, dropout_p=0.1, normalizer="entmax15", backend="cpu")
    with pytest.raises(ValueError, match="exclude each other"):
        attention(q, q, q, attn_mask=torch.ones(5, 5, dtype=torch.bool), is_causal=True)
    with pytest.raises(ValueError, match=r"attn_mask is bool .*not torch.int64; use mask.bool"):
        attention(q, q, q, attn_mask=torch.ones(5, 5, dtype=torch.long), normalizer="entmax15")
    with pytest.raises(ValueError, match="5 query heads are no multiple of 2 key heads"):
        attention(torch.zeros(1, 5, 5, 4), q, q, enable_gqa=True)


def test_a_sweep_over_specs_does_not_grow_caches() -> None:
    from attn_plugins.attention import call

    q = randn(0, 1, 1, 2, 4)
    for step in range(2 * call._MOST_BOUND):
        attention(q, q, q, normalizer=f"entmax:alpha={1.1 + step / 1000}")
    assert len(call._BOUND) <= call._MOST_BOUND
    again = attention(q, q, q, normalizer="entmax:alpha=1.1")
    torch.testing.assert_close(again.double(), expected(q, q, q, 1.1), atol=1e-5, rtol=0)
