"""Products over the support alone (sparse.h) equal the dense ones, on every instruction set, whatever the scores."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attn_plugins import attention, native
from attn_plugins.functional import EntmaxAlpha
from attn_plugins.native import attention as kernel

from .conftest import built

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")

CASE = {
    "queries": st.integers(1, 60),
    "keys": st.sampled_from([1, 40, 99, 100, 101, 127, 128, 160, 257]),
    "dims": st.sampled_from([(8, 8), (64, 64), (64, 40), (16, 130), (72, 72), (1, 3)]),
    "scale": st.sampled_from([0.0, 0.05, 0.3, 1.0, 8.0]),
    "alpha": st.sampled_from([1.05, 1.25, 1.3, 1.45, 1.5, 1.7, 2.0]),
    "masking": st.sampled_from(["none", "causal", "bool", "rows", "float", "clusters"]),
    "seed": st.integers(0, 2**31),
}


def inputs(queries: int, keys: int, dims: tuple[int, int], scale: float, seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = [(2, 2, queries, dims[0]), (2, 2, keys, dims[0]), (2, 2, keys, dims[1])]
    q, k, v = (torch.randn(shape, generator=random) for shape in shapes)
    return [(q * scale).requires_grad_(), k.requires_grad_(), v.requires_grad_()]


def mask_of(masking: str, queries: int, keys: int, seed: int) -> Tensor | None:
    random = torch.Generator().manual_seed(seed + 1)
    if masking == "bool":
        return torch.rand(2, 1, queries, keys, generator=random) < 0.3
    if masking == "rows":  # some queries see nothing, some one key
        return torch.rand(2, 1, queries, keys, generator=random) < torch.rand(2, 1, queries, 1, generator=random) ** 8
    if (
        masking == "clusters"
    ):  # a few keys stand above the rest, which all lose their weight at nearly the same threshold
        return torch.where(torch.arange(keys) <= keys // 50, 1.5, 0.0).expand(2, 1, queries, keys)
    return torch.randn(2, 1, queries, keys, generator=random) if masking == "float" else None


def results(x: list[Tensor], alpha: float, backend: str, **masks: Any) -> list[Tensor]:
    """Output and the gradients of query, key, value and alpha."""
    module = EntmaxAlpha(2, init=alpha) if 1.05 < alpha < 2 else None
    normalizer = module or f"entmax:alpha={alpha}"
    if module is not None:
        module = module.to(x[0].dtype)
    out = attention(x[0], x[1], x[2], normalizer=normalizer, backend=backend, **masks)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape).cos()
    wrt = [*x, *(module.parameters() if module else ())]
    return [out, *torch.autograd.grad((out * weight).sum(), wrt)]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
class TestEveryInstructionSet:
    @given(**CASE)
    def test_equals_float64(
        self, queries: int, keys: int, dims: tuple[int, int], scale: float, alpha: float, masking: str, seed: int
    ) -> None:
        x = inputs(queries, keys, dims, scale, seed)
        masks: dict[str, Any] = {"is_causal": masking == "causal", "attn_mask": mask_of(masking, queries, keys, seed)}
        found = results(x, alpha, "cpu", **masks)
        if masks["attn_mask"] is not None and masks["attn_mask"].dtype != torch.bool:
            masks["attn_mask"] = masks["attn_mask"].double()
        exact = [t.detach().double().requires_grad_() for t in x]
        for name, a, b in zip(
            ["o", "q", "k", "v", "alpha"], found, results(exact, alpha, "reference", **masks), strict=False
        ):
            # A weight that is nearly zero may be zero in float32: sparsemax's gradient jumps there. That of alpha is a
            # sum over all rows, whose terms cancel.
            tolerance = 2e-3 if name == "alpha" or (alpha > 1.5 and name != "o") else 1e-4
            size = max(1.0, float(b.detach().abs().max()))
            wrong = (a.double() - b).abs() > tolerance * size
            assert wrong.float().mean() <= (0.01 if alpha > 1.5 else 0), (
                name,
                float((a.double() - b).abs().max()),
                size,
            )


@pytest.mark.slow
@settings(max_examples=150)
@given(**CASE)
def test_the_choice_does_not_show(
    dense: ctypes.CDLL,
    queries: int,
    keys: int,
    dims: tuple[int, int],
    scale: float,
    alpha: float,
    masking: str,
    seed: int,
) -> None:
    x = inputs(queries, keys, dims, scale, seed)
    masks: dict[str, Any] = {"is_causal": masking == "causal", "attn_mask": mask_of(masking, queries, keys, seed)}
    found = results(x, alpha, "cpu", **masks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_library", lambda: dense)
        for a, b in zip(found, results(x, alpha, "cpu", **masks), strict=True):
            tolerance = 2e-6 if a.ndim > 1 else 5e-5  # alpha's is a sum over all rows, whose terms cancel
            assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max())) * max(1.0, scale)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel, which never finds a support small."""
    return built(tmp_path_factory.mktemp("dense"), "-DFEW=1000000")


@pytest.mark.slow
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", range(3))
def test_what_is_not_finite_reaches_the_same_places(dense: ctypes.CDLL, bad: float, which: int) -> None:
    x = inputs(20, 200, (64, 64), 3.0, 0)
    x[which].data[0, 1, 3, 5] = bad
    found = results(x, 1.5, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_library", lambda: dense)
        for a, b in zip(found, results(x, 1.5, "cpu"), strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-5)
