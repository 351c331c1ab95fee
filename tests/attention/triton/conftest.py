"""On the GPU where there is one, else in Triton's interpreter on CPU tensors (see tests/conftest.py)."""

import os

import pytest
import torch

pytest.importorskip("triton")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    from attn_plugins.attention.triton import tuning

    del os.environ["TRITON_INTERPRET"]
    assert tuning.interpreting(), "triton was imported before tests/conftest.py could choose its interpreter"


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors may go to the kernels, in this folder only."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    torch.manual_seed(0)
