"""``check_normalizer``: ours pass, and each kind of broken one fails by the property that it breaks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attn_plugins
from attn_plugins.functional import entmax15, softmax, sparsemax
from attn_plugins.registry import NORMALIZERS
from attn_plugins.testing import CheckFailed, check_normalizer

OURS = ["softmax", "sparsemax", "entmax15", "entmax:alpha=1", "entmax:alpha=1.25", "entmax:alpha=3.0", "entmax_alpha"]


@pytest.fixture(autouse=True)
def new_names() -> Iterator[None]:
    with NORMALIZERS.temporarily():
        yield


@pytest.mark.parametrize("name", OURS)
def test_ours_pass(name: str) -> None:
    report = check_normalizer(name)
    learned = name.startswith("entmax_alpha")
    assert [check.result for check in report] == ["holds"] * 13, str(report)
    assert learned or report.subject == f"normalizer {attn_plugins.parse(name).normalizer}"


def relu(z: Tensor, dim: int = -1) -> Tensor:
    """Rows that sum to what they sum to."""
    return z.relu() / z.shape[dim]


def test_what_is_no_simplex_is_checked_for_the_rest() -> None:
    report = check_normalizer(relu, simplex=False)
    assert {c.property: c.result for c in report}["simplex"] == "not meant"
    assert {c.property: c.result for c in report}["alpha"] == "none registered"
    assert "gradient          holds" in str(report)
    with pytest.raises(CheckFailed, match="the sum of a row is off"):
        check_normalizer(relu)


def mean(z: Tensor, dim: int = -1) -> Tensor:
    return z.softmax(dim).mean(dim, keepdim=True)


def always_float32(z: Tensor, dim: int = -1) -> Tensor:
    return softmax(z.float(), dim)


def last_only(z: Tensor, dim: int = -1) -> Tensor:
    return softmax(z, -1)


def overflowing(z: Tensor, dim: int = -1) -> Tensor:
    return z.exp() / z.exp().sum(dim, keepdim=True)


def in_place(z: Tensor, dim: int = -1) -> Tensor:
    z -= z.amax(dim, keepdim=True)
    return softmax(z, dim)


def negative(z: Tensor, dim: int = -1) -> Tensor:
    return 1.5 * softmax(z, dim) - 0.5 / z.shape[dim]


def mixing(z: Tensor, dim: int = -1) -> Tensor:
    return softmax(z / z.clamp(-10, 10).std().clamp(min=1), dim) if z.numel() > 1 else softmax(z, dim)


def leaking(z: Tensor, dim: int = -1) -> Tensor:
    return softmax(z.clamp(min=-3), dim)


def smooth(z: Tensor, dim: int = -1) -> Tensor:
    return softmax(z, dim) * 0.9 + 0.1 * softmax(torch.zeros_like(z), dim)


class _Forgetful(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, dim: int) -> Tensor:
        weights = softmax(z, dim)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return weights * grad, None  # without the mean


def wrong_gradient(z: Tensor, dim: int = -1) -> Tensor:
    out: Tensor = _Forgetful.apply(z, dim)
    return out


def squared(z: Tensor, dim: int = -1) -> Tensor:
    """In half precision its sums have no digits."""
    total = z.sub(z.amax(dim, keepdim=True).nan_to_num(neginf=0)).exp()
    if z.dtype in (torch.float16, torch.bfloat16):
        total = (total * 8).round() / 8
    return total / total.sum(dim, keepdim=True).clamp(min=1e-6)


class _NoVmap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, dim: int) -> Tensor:
        weights = softmax(z, dim)
        ctx.save_for_backward(weights)
        ctx.dim = dim
        return weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return weights * (grad - (weights * grad).sum(ctx.dim, keepdim=True)), None


def without_vmap(z: Tensor, dim: int = -1) -> Tensor:
    out: Tensor = _NoVmap.apply(z, dim)
    return out


def looks_at_values(z: Tensor, dim: int = -1) -> Tensor:
    try:
        large = (z > 1e30).any().item()
    except RuntimeError:  # vmap
        large = False
    return sparsemax(z, dim) if large else softmax(z, dim)


class Detached(nn.Module):
    """A parameter whose gradient is wrong."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        return softmax(scores * (0.5 * self.temperature + 0.5 * self.temperature.detach()), dim)


class Remembering(nn.Module):
    """Its copies start anew."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.made_from = num_heads

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        return softmax(scores if vars(self).get("made_from") else 2 * scores, dim)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "made_from": 0}


class Stateful(nn.Module):
    """What it computes is not in its state dict."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.temperature = float(1 + torch.rand(()))

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        return softmax(scores * self.temperature, dim)


@pytest.mark.parametrize(
    ("broken", "name", "message"),
    [
        (always_float32, "shape", r"random scores \(2, 3, 4, 6\) torch.float64: it returns .* torch.float32"),
        (last_only, "shape", "dim=-2 of the transposed scores is off"),
        (overflowing, "shape", "scores of ±1000.*NaN or infinity"),
        (in_place, "scores unchanged", "random scores: it changes its argument"),
        (negative, "simplex", "random scores: the smallest weight is -"),
        (relu, "simplex", "the sum of a row is off"),
        (mixing, "rows", "the first of two images alone is off"),
        (leaking, "masks", "a score of -inf has a weight"),
        (torch.softmax, "masks", "a row of nothing but -inf"),
        (smooth, "masks", "a score of -inf has a weight"),
        (wrong_gradient, "gradient", "GradcheckError: Jacobian mismatch"),
        (Detached, "gradient", "GradcheckError: Jacobian mismatch"),
        (squared, "half precision", "weights of torch.float16 scores is off"),
        (without_vmap, "vmap", "RuntimeError: .*autograd.Function with functorch transforms"),
        (looks_at_values, "compile", "data-dependent"),
        (Remembering, "copies", "a deep copy is off"),
        (lambda z, dim=-1: softmax(z, dim), "copies", "PicklingError: .*<lambda> cannot be pickled"),
        (Stateful, "patch", "with the state dict of another is off"),
    ],
)
def test_a_broken_one_fails_by_what_it_breaks(broken: Callable[..., Any], name: str, message: str) -> None:
    with pytest.raises(CheckFailed, match=f"{name}: (?s:.*){message}") as failure:
        check_normalizer(broken)
    assert failure.value.property == name and isinstance(failure.value, AssertionError)


def test_an_alpha_that_is_not_true_is_found() -> None:
    attn_plugins.register_normalizer("sharp", alpha=1.5)(functools.partial(sparsemax))
    attn_plugins.register_normalizer("right", alpha=1.5)(_entmax15)
    with pytest.raises(CheckFailed, match=r"normalizer sharp: alpha: .*alpha=1\.5 gives, as kernels compute it"):
        check_normalizer("sharp")
    assert len(check_normalizer("right", skip=["compile"])) == 13


def _entmax15(z: Tensor, dim: int = -1) -> Tensor:
    return entmax15(z, dim)


def test_a_backend_that_is_wrong_is_found() -> None:
    from attn_plugins.attention import reference
    from attn_plugins.attention.backend import BACKENDS

    with BACKENDS.temporarily():
        attn_plugins.register_backend(attn_plugins.Backend("wrong", lambda call: 1.01 * reference.run(call)))
        with pytest.raises(CheckFailed, match="attention: attention with no mask is off"):
            check_normalizer("entmax15")


def test_bad_input_is_an_error_of_its_own() -> None:
    with pytest.raises(attn_plugins.UnknownPluginError):
        check_normalizer("entmex")
    with pytest.raises(ValueError, match="check_mechanism is for those"):
        check_normalizer("registers")
    with pytest.raises(ValueError, match=r"skip=\['speed'\] are no properties .*there are shape"):
        check_normalizer("entmax15", skip=["speed"])
    with pytest.raises(ValueError, match=r"returns shape \(1, 1\)"):
        check_normalizer(mean)
    assert {c.property: c.result for c in check_normalizer("softmax", skip=["compile"])}["compile"] == "skipped"
