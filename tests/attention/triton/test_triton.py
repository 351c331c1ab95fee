"""Which calls the kernels take, and what is said of those that they do not."""

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from helpers.triton_cases import DEVICE, qkv
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from attn_plugins import attention
from attn_plugins.attention import dispatch
from attn_plugins.attention.call import AttentionCall, resolve_normalizer
from attn_plugins.attention.triton import unsupported


def call(q: Tensor, k: Tensor, v: Tensor, normalizer: str = "entmax15", **kwargs: Any) -> AttentionCall:
    function = resolve_normalizer(normalizer)
    return AttentionCall(q, k, v, function, getattr(function, "alpha", None), **kwargs)


@pytest.mark.parametrize(
    "change,said",
    [
        ({"normalizer": "softmax"}, "alpha"),
        ({"normalizer": "entmax:alpha=3.0"}, "alpha"),
        ({"dropout_p": 0.1}, "dropout"),
        ({"attn_mask": torch.zeros(20, 20)}, "masks"),
        ({"attn_mask": torch.ones(20, 20, dtype=torch.bool)}, "masks"),
    ],
)
def test_what_is_not_taken_is_named(change: dict[str, Any], said: str) -> None:
    tensors = qkv(1, 2, 20, 16)
    change = {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in change.items()}
    reason = unsupported(call(*tensors, **change))
    assert reason is not None and said in reason
    with pytest.raises(ValueError, match=said):
        attention(*tensors, **{"normalizer": "entmax15", "backend": "triton"} | change)


@pytest.mark.parametrize(
    "tensors,said",
    [
        ([torch.randn(1, 2, 5, 200)] * 3, "wide"),
        ([torch.randn(1, 2, 5, 16).double()] * 3, "float64"),
        ([torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5, 16).half(), torch.randn(1, 2, 5, 16)], "float16"),
        ([torch.randn(2, 2, 5, 16), torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5, 16)], "broadcasting"),
        ([torch.randn(1, 2, 0, 16)] * 3, "nothing"),
    ],
)
def test_shapes_and_dtypes_that_are_not_taken(tensors: list[Tensor], said: str) -> None:
    q, k, v = (t.to(DEVICE) for t in tensors)
    reason = unsupported(call(q, k, v))
    assert reason is not None and said in reason


def test_falling_to_the_reference_on_an_accelerator_is_said_once() -> None:
    with FakeTensorMode():  # tensors that say they are on a GPU, where there need be none
        q, k, v = (torch.empty(1, 2, 7, 16, device="cuda") for _ in range(3))
    dispatch._announce.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        names = {dispatch.choose_backend(call(q, k, v, normalizer="entmax:alpha=3.0")).name for _ in range(2)}
    assert names == {"reference"}
    reason = "it computes entmax with 1.05 <= alpha <= 2.0 only"
    assert [str(w.message) for w in seen] == [f"attention runs without a fused kernel: triton cannot, {reason}"]


@pytest.mark.parametrize("dims", [3, 5])
def test_other_numbers_of_leading_dimensions(dims: int) -> None:
    lead = {3: (), 5: (2, 3)}[dims]
    q, k, v = (torch.randn(*lead, 2, 9, 16, device=DEVICE) for _ in range(3))
    actual = attention(q, k, v, normalizer="entmax15", backend="triton")
    reference = attention(q, k, v, normalizer="entmax15", backend="reference")
    torch.testing.assert_close(actual, reference, atol=1e-5, rtol=1e-5)


def test_importing_the_package_does_not_import_triton() -> None:
    code = "import sys, attn_plugins; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
