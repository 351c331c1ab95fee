"""Entmax in plain operations: within 1e-5 of the entmax package for any scores, and differentiable in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import entmax as peer
import pytest
import torch
from torch import Tensor

import attn_plugins
from attn_plugins.functional import entmax, entmax15, entmax_alpha, plain, sparsemax

Solver = Callable[[Tensor], Tensor]


def _bisected(z: Tensor, alpha: float) -> Tensor:
    out: Tensor = peer.entmax_bisect(z.double(), alpha, dim=-1, n_iter=100)
    return out


PAIRS: dict[str, tuple[Solver, Solver, float]] = {
    "entmax15": (entmax15, lambda z: peer.entmax15(z, dim=-1), 1e-6),
    "sparsemax": (sparsemax, lambda z: peer.sparsemax(z, dim=-1), 1e-6),
}
for value in (1.01, 1.05, 1.3, 1.7, 1.99, 3.0, 5.0):
    PAIRS[f"entmax:alpha={value}"] = (
        partial(entmax, alpha=value),
        partial(_bisected, alpha=value),
        2e-6,
    )
for value in (1.01, 1.05, 1.3, 1.5, 2.0):
    PAIRS[f"entmax_alpha at {value}"] = (
        partial(entmax_alpha, alpha=torch.tensor(value)),
        partial(_bisected, alpha=value),
        1e-5 if value < 1.05 else 2e-6,
    )


def adversarial() -> Iterator[Tensor]:
    """Rows ``[B, n]``: ties, one-hot, at the edge of the support, ramps, many scales, large offsets, masks."""
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 3, 17, 197, 1025):
        noise = torch.randn(8, n, generator=generator)
        yield from (noise * scale + 3 for scale in (0.0, 1e-3, 0.1, 1.0, 10.0, 1e4))
        yield noise + 1e4
        yield noise.masked_fill(torch.rand(8, n, generator=generator) < 0.5, -torch.inf)
        yield (noise * 2).round()
        yield torch.where(torch.arange(n) < 1, 0.0, -5.0)[None]
        yield torch.where(torch.arange(n) < n // 2, 0.0, -2.0)[None]
        yield -torch.linspace(0, 2, n)[None]
        yield -torch.logspace(-6, 1, n)[None]


@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_entmax_package(name: str) -> None:
    ours, theirs, tolerance = PAIRS[name]
    for z in adversarial():
        with plain.computed():
            found = ours(z)
        # The package makes NaN of a row with -inf.
        expected = theirs(z.clamp(min=-1e5)).masked_fill((z == -torch.inf).all(-1, keepdim=True), 0)
        assert (found - expected).abs().max() <= tolerance


@pytest.mark.parametrize("name", PAIRS)
def test_rows_without_an_answer(name: str) -> None:
    solve = PAIRS[name][0]
    nan, inf = torch.nan, torch.inf
    with plain.computed():
        found = solve(torch.tensor([[1.0, nan, 0.0], [1.0, inf, 0.0], [-inf, -inf, -inf], [0.0, -inf, -inf]]))
    assert found[:2].isnan().all()
    assert found[2:].tolist() == [[0, 0, 0], [1, 0, 0]]


def test_any_dim_and_dtype() -> None:
    z = torch.randn(3, 4, 5)
    with plain.computed():
        assert torch.equal(entmax15(z, dim=1), entmax15(z.movedim(1, -1)).movedim(-1, 1))
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            assert entmax(z.to(dtype), 1.3).dtype == dtype
        assert (entmax15(z.double()) - peer.entmax15(z.double(), dim=-1)).abs().max() <= 1e-12
        assert entmax15(torch.tensor(2.0)) == 1


@pytest.mark.parametrize("alpha", [1.05, 1.3, 1.5, 2.0, 3.0])
def test_derivatives_of_both_modes_and_orders(alpha: float) -> None:
    z = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with plain.computed():
        assert torch.autograd.gradcheck(lambda z: entmax(z, alpha), z, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda z: entmax(z, alpha), z)


def test_derivatives_by_alpha() -> None:
    z = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    alpha = torch.tensor([[1.2], [1.5], [1.8], [1.4]], dtype=torch.float64, requires_grad=True)
    with plain.computed():
        assert torch.autograd.gradcheck(entmax_alpha, (z, alpha), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(entmax_alpha, (z, alpha))


def test_masks_have_no_gradient() -> None:
    z = torch.randn(2, 5)
    z[0], z[1, 2] = -torch.inf, -torch.inf
    z.requires_grad_()
    alpha = torch.tensor([[1.2], [1.5]], requires_grad=True)
    with plain.computed():
        entmax_alpha(z, alpha).square().sum().backward()
    assert z.grad is not None and alpha.grad is not None
    assert z.grad.isfinite().all() and alpha.grad.isfinite().all()
    assert not z.grad[0].any() and z.grad[1, 2] == 0
    assert z.grad[1].any() and alpha.grad[1] != 0


# --- forward mode takes it by itself


@pytest.mark.parametrize("name", ["softmax", "entmax15", "sparsemax", "entmax:alpha=1.3"])
def test_forward_mode_of_attention(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, dq, dk, dv = (torch.randn(1, 2, 5, 4, dtype=torch.float64, generator=generator) for _ in range(6))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attn_plugins.attention(q, k, v, normalizer=name)
        return out

    out, tangent = torch.func.jvp(run, (q, k, v), (dq, dk, dv))[:2]
    step = 1e-6
    ahead, behind = (run(q + s * dq, k + s * dk, v + s * dv) for s in (step, -step))
    assert (tangent - (ahead - behind) / (2 * step)).abs().max() <= 1e-8
    assert tangent.abs().max() > 1e-2
    assert (out - run(q, k, v)).abs().max() <= 1e-12
    assert (torch.func.jacfwd(run)(q, k, v) - torch.func.jacrev(run)(q, k, v)).abs().max() <= 1e-12
