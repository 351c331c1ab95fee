"""What every normalizer promises about its weights, and agreement with the entmax package."""

from collections.abc import Callable

import entmax as peer
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attn_plugins.functional import entmax, entmax15, entmax_alpha, softmax, sparsemax

INF = float("inf")
NORMALIZERS = {
    "softmax": softmax,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "entmax 1.2": lambda z, dim=-1: entmax(z, 1.2, dim),
    "entmax 1.75": lambda z, dim=-1: entmax(z, 1.75, dim),
    "entmax 3": lambda z, dim=-1: entmax(z, 3.0, dim),
    "entmax_alpha": lambda z, dim=-1: entmax_alpha(z, torch.tensor(1.4).reshape((1,) * z.dim()), dim),
}
EXACT = {"sparsemax": (sparsemax, peer.sparsemax), "entmax15": (entmax15, peer.entmax15)}

every_normalizer = pytest.mark.parametrize("normalizer", NORMALIZERS.values(), ids=NORMALIZERS)
every_exact = pytest.mark.parametrize(("ours", "theirs"), EXACT.values(), ids=EXACT)


def rows(seed: int, *shape: int, spread: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread).to(dtype)


@every_exact
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 40),
    n=st.integers(1, 300),
    spread=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 10.0, 1e4]),
    ties=st.booleans(),
)
def test_equals_the_sorting_implementation(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], seed: int, count: int, n: int, spread: float, ties: bool
) -> None:
    z = rows(seed, count, n, spread=spread)
    z = (z * 4).round() / 4 if ties else z
    assert (ours(z) - theirs(z, dim=-1)).abs().max() <= 1e-10
    z32 = z.float()
    assert (ours(z32).double() - theirs(z32.double(), dim=-1)).abs().max() <= 2e-6


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 200),
    alpha=st.floats(1.01, 5.0),
    spread=st.sampled_from([0.0, 0.1, 1.0, 10.0, 1e3]),
)
def test_any_alpha_equals_bisection(seed: int, n: int, alpha: float, spread: float) -> None:
    z = rows(seed, 7, n, spread=spread)
    expected = peer.entmax_bisect(z, alpha, dim=-1, n_iter=100)
    # d^(1 / (alpha - 1)) turns a rounding of 1e-16 at the edge of the support into 1e-8 at alpha = 3: both round there.
    tolerance = max(1e-10, 4 * 1e-16 ** min(1.0, 1 / (alpha - 1)))
    assert (entmax(z, alpha) - expected).abs().max() <= tolerance
    z32 = z.float()
    expected = peer.entmax_bisect(z32.double(), alpha, dim=-1, n_iter=100)
    assert (entmax(z32, alpha).double() - expected).abs().max() <= max(2e-6, tolerance)


def adversarial_rows() -> dict[str, torch.Tensor]:
    n = torch.arange(400, dtype=torch.float64)
    return {
        "geometric": -(2.0 ** -n[:60]),  # one score leaves the support at a time
        "reversed geometric": -(2.0 ** (n[:60] - 60)),
        "harmonic": -1 / (n + 1),
        "linear": -n / 400,
        "steep": -n * 1e4,
        "one far ahead": torch.cat([torch.tensor([1e6], dtype=torch.float64), n]),
        "nearly equal": 1e-15 * n,
        "on the edge of the support": torch.tensor([0.0, -1.0, -2.0, -1.0 - 1e-12, -1.0 + 1e-12], dtype=torch.float64),
    }


@pytest.mark.parametrize("row", adversarial_rows().values(), ids=adversarial_rows())
@every_exact
def test_rows_made_to_take_many_steps(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], row: Tensor) -> None:
    assert (ours(row) - theirs(row, dim=-1)).abs().max() <= 1e-10
    assert (ours(row.float()).double() - theirs(row.float().double(), dim=-1)).abs().max() <= 2e-6


@pytest.mark.parametrize("alpha", [1.05, 1.2, 1.4, 1.45, 1.499, 1.501, 1.7])
def test_keys_that_lose_their_weight_at_once(alpha: float) -> None:
    z = rows(3, 256, 1370, spread=0.1, dtype=torch.float32)  # a step from one side of the many says little of the other
    z[:, :27] += 1.5
    expected = peer.entmax_bisect(z.double(), alpha, dim=-1, n_iter=40)
    assert (entmax(z, alpha).double() - expected).abs().max() <= 2e-6


@every_normalizer
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 500),
    spread=st.sampled_from([0.0, 0.01, 1.0, 100.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_weights_are_a_distribution(
    normalizer: Callable[..., Tensor], seed: int, n: int, spread: float, dtype: torch.dtype
) -> None:
    p = normalizer(rows(seed, 9, n, spread=spread, dtype=dtype))
    assert p.dtype == dtype
    assert (p >= 0).all()
    assert (p.double().sum(-1) - 1).abs().max() <= 2e-6


@every_normalizer
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0])
def test_long_rows_sum_to_one(normalizer: Callable[..., Tensor], spread: float) -> None:
    p = normalizer(rows(8, 2, 40_000, spread=spread, dtype=torch.float32))
    assert (p.double().sum(-1) - 1).abs().max() <= 2e-6


@every_normalizer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_float32(normalizer: Callable[..., Tensor], dtype: torch.dtype) -> None:
    z = rows(0, 4, 60, dtype=dtype)
    expected = normalizer(z.float()).to(dtype)
    assert torch.equal(normalizer(z), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = normalizer(z)
    assert result.shape == z.shape and (result.float() - expected.float()).abs().max() <= 1e-2


@every_normalizer
def test_any_dim_and_layout(normalizer: Callable[..., Tensor]) -> None:
    z = rows(1, 3, 4, 5, 6, dtype=torch.float32)
    expected = normalizer(z)
    for dim in range(4):
        moved = z.movedim(-1, dim)
        assert not moved.is_contiguous() or dim == 3
        for candidate in (moved, moved.contiguous()):
            for result in (normalizer(candidate, dim=dim), normalizer(candidate, dim=dim - 4)):
                torch.testing.assert_close(result, expected.movedim(-1, dim), rtol=0, atol=5e-7)
    strided = torch.empty(3, 4, 5, 12)[..., ::2].copy_(z)
    torch.testing.assert_close(normalizer(strided), expected, rtol=0, atol=0)
    torch.testing.assert_close(normalizer(z[:1].expand(7, -1, -1, -1)), expected[:1].expand(7, -1, -1, -1))


@every_normalizer
def test_degenerate_shapes(normalizer: Callable[..., Tensor]) -> None:
    assert normalizer(torch.empty(0, 5)).shape == (0, 5)
    assert normalizer(torch.empty(3, 0)).shape == (3, 0)
    assert torch.equal(normalizer(torch.tensor([[3.0], [-1e4]])), torch.ones(2, 1))
    assert normalizer(torch.tensor(2.0)) == 1
    equal = normalizer(torch.full((2, 7), 5.0))
    torch.testing.assert_close(equal, torch.full((2, 7), 1 / 7))


@every_normalizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_scores_have_no_weight_and_no_gradient(normalizer: Callable[..., Tensor], dtype: torch.dtype) -> None:
    z = rows(2, 20, 33, dtype=dtype)
    masked = rows(3, 20, 33) > 0.5
    masked[0], masked[:, 0] = True, masked[:, 0] & (torch.arange(20) == 0)
    masked[0, 0] = True
    z = z.masked_fill(masked, -INF).requires_grad_()
    p = normalizer(z)
    (grad,) = torch.autograd.grad(p, z, rows(4, 20, 33, dtype=dtype))
    assert (p[masked] == 0).all() and (grad[masked] == 0).all()
    assert (p[0] == 0).all() and not grad.isnan().any()
    torch.testing.assert_close(p[1:].sum(-1), torch.ones(19, dtype=dtype))
    row = 5
    torch.testing.assert_close(p[row, ~masked[row]], normalizer(z[row, ~masked[row]]), rtol=0, atol=2e-7)


@every_normalizer
def test_nan_and_infinity_stay_in_their_row(normalizer: Callable[..., Tensor]) -> None:
    z = rows(5, 40, 21, dtype=torch.float32)
    clean = normalizer(z)
    z[3, 20], z[17, 4] = float("nan"), INF
    p = normalizer(z.requires_grad_())
    (grad,) = torch.autograd.grad(p, z, torch.ones_like(p) * torch.arange(21))
    others = [i for i in range(40) if i not in (3, 17)]
    assert p[[3, 17]].isnan().all() and grad[3].isnan().any()
    assert torch.equal(p[others], clean[others]) and not grad[others].isnan().any()


def test_zeros_are_exact_and_grow_with_alpha() -> None:
    z = rows(6, 50, 197, spread=2.0, dtype=torch.float32)
    shares = [(p == 0).float().mean() for p in (softmax(z), entmax(z, 1.25), entmax15(z), sparsemax(z))]
    assert shares[0] == 0 and shares == sorted(shares) and shares[1] < shares[2] < shares[3]
    support = peer.entmax15(z.double(), dim=-1) > 1e-9
    assert torch.equal(entmax15(z) > 1e-9, support)


@pytest.mark.parametrize("alpha", [0.99, 0.5, -2.0, INF, float("nan")])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha of 1"):
        entmax(torch.zeros(2), alpha)


def test_integer_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"floating point, not torch\.int64"):
        entmax15(torch.arange(3))
