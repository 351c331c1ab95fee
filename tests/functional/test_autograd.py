"""Gradients of the normalizers: against finite differences, the entmax package, and themselves under transforms."""

from collections.abc import Callable

import entmax as peer
import pytest
import torch
from torch import Tensor

from attn_plugins.functional import entmax, entmax15, entmax_alpha, softmax, sparsemax

FAMILY = {
    "softmax": softmax,
    "sparsemax": sparsemax,
    "entmax15": entmax15,
    "entmax 1.2": lambda z, dim=-1: entmax(z, 1.2, dim),
    "entmax 2.5": lambda z, dim=-1: entmax(z, 2.5, dim),
}
every_normalizer = pytest.mark.parametrize("normalizer", FAMILY.values(), ids=FAMILY)


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.slow
@every_normalizer
def test_first_and_second_derivatives(normalizer: Callable[..., Tensor]) -> None:
    z = rows(0, 4, 3, 6).requires_grad_()
    for dim in (-1, 1):
        assert torch.autograd.gradcheck(lambda x, dim=dim: normalizer(x, dim=dim), (z,))
        assert torch.autograd.gradgradcheck(lambda x, dim=dim: normalizer(x, dim=dim), (z,))


def test_derivatives_by_alpha() -> None:
    z = rows(1, 2, 3, 5, 6).requires_grad_()
    alpha = torch.tensor([1.2, 1.5, 1.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, a: entmax_alpha(x, a.view(-1, 1, 1)), (z, alpha))
    assert torch.autograd.gradgradcheck(lambda x, a: entmax_alpha(x, a.view(-1, 1, 1)), (z, alpha))


@pytest.mark.parametrize(("ours", "theirs"), [(sparsemax, peer.sparsemax), (entmax15, peer.entmax15)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_equals_the_sorting_implementation_in_float32(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], spread: float
) -> None:
    z, g = spread * rows(2, 100, 197, dtype=torch.float32), rows(3, 100, 197, dtype=torch.float32)
    found, expected = (torch.autograd.grad(f(x := z.clone().requires_grad_(), dim=-1), x, g)[0] for f in (ours, theirs))
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("alpha", [1.1, 1.3, 1.7])
def test_any_alpha_equals_bisection_in_float32(alpha: float) -> None:
    z, g = rows(4, 30, 50, dtype=torch.float32), rows(5, 30, 50, dtype=torch.float32)
    x, y = z.clone().requires_grad_(), z.double().requires_grad_()
    (found,) = torch.autograd.grad(entmax(x, alpha), x, g)
    (expected,) = torch.autograd.grad(peer.entmax_bisect(y, alpha, dim=-1, n_iter=60), y, g.double())
    # Near the edge of the support the derivative d^(p - 1) is steep for p < 2: rounded scores move it.
    inside = (entmax(y, alpha) > 1e-4) | (entmax(y, alpha) == 0)
    assert (found - expected)[inside].abs().max() <= 1e-5


def test_alpha_gradient_equals_the_entmax_package() -> None:
    z, g = rows(6, 2, 3, 9, 20), rows(7, 2, 3, 9, 20)
    alpha = torch.tensor([1.1, 1.5, 1.95], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(entmax_alpha(z, alpha.view(-1, 1, 1)), alpha, g)
    theirs = peer.entmax_bisect(z, alpha.view(1, 3, 1, 1).expand(2, 3, 9, 1), dim=-1, n_iter=80)
    (expected,) = torch.autograd.grad(theirs, alpha, g)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_ties_share_weight_and_gradient() -> None:
    z = torch.tensor([[1.0, 1.0, 0.5, 0.5, -3.0]], dtype=torch.float64, requires_grad=True)
    for normalizer in (entmax15, sparsemax):
        p = normalizer(z)
        (grad,) = torch.autograd.grad(p.square().sum(), z)
        assert p[0, 0] == p[0, 1] and p[0, 2] == p[0, 3] and grad[0, 0] == grad[0, 1] and grad[0, 2] == grad[0, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_score_on_the_edge_of_the_support_has_no_gradient(dtype: torch.dtype) -> None:
    # entmax-1.5 of (2, 0): tau = 0 exactly, so the second score has weight 0, and slope 0 from both sides.
    z = torch.tensor([2.0, 0.0], dtype=dtype, requires_grad=True)
    p = entmax15(z)
    assert p.tolist() == [1.0, 0.0]
    (grad,) = torch.autograd.grad(p, z, torch.tensor([1.0, 1e30], dtype=dtype))
    assert grad.tolist() == [0.0, 0.0]


@every_normalizer
def test_vmap_and_nested_grad(normalizer: Callable[..., Tensor]) -> None:
    z = rows(8, 5, 4, 7)
    expected = normalizer(z)
    for dim in range(2):
        mapped = torch.func.vmap(normalizer, in_dims=dim, out_dims=dim)(z)
        torch.testing.assert_close(mapped, expected)
    x = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(normalizer(x).square().sum(), x)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda r: normalizer(r).square().sum()))(z), grad)
    one = z[0, 0]
    jacobian = torch.func.jacrev(normalizer)(one)
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(normalizer, one))


def test_vmap_over_alpha() -> None:
    z, alphas = rows(9, 3, 4, 7), torch.tensor([1.1, 1.5, 1.9], dtype=torch.float64)
    expected = torch.stack([entmax(row, float(alpha)) for row, alpha in zip(z, alphas, strict=True)])
    torch.testing.assert_close(torch.func.vmap(lambda s, a: entmax_alpha(s, a.view(1, 1)))(z, alphas), expected)
    both = torch.func.vmap(lambda a: entmax_alpha(z[0], a.view(1, 1)))(alphas)
    torch.testing.assert_close(both[1], entmax15(z[0]))


@pytest.mark.parametrize("name", ["entmax15", "entmax_alpha"])
def test_compiles_without_graph_breaks(name: str) -> None:
    alpha = torch.full((4, 1), 1.4, requires_grad=True)
    normalizer = entmax15 if name == "entmax15" else lambda z: entmax_alpha(z, alpha)

    def loss(z: Tensor) -> Tensor:
        return normalizer(z * 2).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    z = rows(10, 4, 30, dtype=torch.float32).requires_grad_()
    inputs = (z,) if name == "entmax15" else (z, alpha)
    for found, expected in zip(
        torch.autograd.grad(compiled(z), inputs), torch.autograd.grad(loss(z), inputs), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_operators_keep_torchs_rules() -> None:
    z = rows(11, 3, 8, dtype=torch.float32)
    ops = torch.ops.attn_plugins
    torch.library.opcheck(ops.entmax.default, (z, 1.5))
    torch.library.opcheck(ops.entmax.default, (z.t(), 1.3))
    torch.library.opcheck(ops.entmax_backward.default, (entmax15(z), z, 1.5))
    torch.library.opcheck(ops.entmax_alpha.default, (z, torch.full((3, 1), 1.4)))
