"""Devices that no kernel is written for: plain torch computes there, and it is said once.

Fake tensors say that they lie on a device that this machine lacks, and refuse to be mixed with others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import attn_plugins
from attn_plugins.attention import dispatch


@pytest.fixture(autouse=True)
def nothing_was_said() -> Iterator[None]:
    dispatch._announce.cache_clear()
    yield
    dispatch._announce.cache_clear()


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_plain_torch_computes_and_says_so_once(device: str) -> None:
    with FakeTensorMode(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        q, k, v = (torch.empty(2, 3, 9, 8, device=device) for _ in range(3))
        mask = torch.empty(9, 9, device=device)
        for spec in ("entmax15", "sparsemax", "entmax:alpha=1.3"):
            for attn_mask in (None, mask):
                out = attn_plugins.attention(q, k, v, attn_mask, normalizer=spec)
                assert out.device.type == device and out.shape == q.shape
    (said,) = [str(warning.message) for warning in seen if "fused kernel" in str(warning.message)]
    assert f"not on {device}" in said


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_the_kernels_of_other_devices_are_refused_by_name(device: str) -> None:
    with FakeTensorMode():
        q = torch.empty(2, 3, 9, 8, device=device)
        for backend, reason in (("cpu", "CPU tensors only"), ("triton", f"CUDA tensors only, not on {device}")):
            with pytest.raises(ValueError, match=reason):
                attn_plugins.attention(q, q, q, normalizer="entmax15", backend=backend)
