"""Half precision is read and written by the kernel as torch converts it, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attn_plugins import attention, native

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")

halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def results(x: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Output and the gradients of query, key and value."""
    x = [t.detach().requires_grad_() for t in x]
    out = attention(x[0], x[1], x[2], normalizer="entmax:alpha=1.3", backend="cpu")
    return [out, *torch.autograd.grad(out, x, grad.to(out.dtype))]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
class TestEveryInstructionSet:
    @halves
    def test_every_number_is_rounded_as_torch_does(self, dtype: torch.dtype) -> None:
        patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16)
        order = torch.randperm(2**16, generator=torch.Generator().manual_seed(0))
        values = torch.stack([patterns, patterns[order]]).view(dtype)  # all of them, infinities and NaNs too
        v = values.view(2, 1024, 1, 64).permute(1, 2, 0, 3)
        q = torch.zeros(1024, 1, 2, 64, dtype=dtype)
        out = attention(q, q, v, normalizer="sparsemax", backend="cpu")  # half of the one and half of the other
        first, second = values.float().view(2, 1024, 64) * 0.5
        equal(out[:, 0, 0], (first + second).to(dtype))

    @halves
    @pytest.mark.parametrize("mixed", [False, True])
    @pytest.mark.parametrize("dims", [(64, 64), (19, 5)])
    def test_equals_widening_beforehand_and_rounding_afterwards(
        self, dtype: torch.dtype, mixed: bool, dims: tuple[int, int]
    ) -> None:
        random = torch.Generator().manual_seed(0)
        heads = [torch.randn(2, 70, 3, dims[i > 1], generator=random).to(dtype).transpose(1, 2) for i in range(4)]
        *x, grad = heads
        x[1] = x[1].float() if mixed else x[1]
        found = results(x, grad)
        expected = results([t.float() for t in x], grad)
        for a, b, like in zip(found, expected, [x[2], *x], strict=True):
            assert a.dtype == like.dtype
            equal(a, b.to(like.dtype))
