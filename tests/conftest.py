"""Before anything else is collected: without a GPU, Triton's kernels are tested in its interpreter.

That has to be chosen before triton is imported, and timm, among others, imports it. The variable does not stay:
with it, the dispatcher would take the interpreter for CPU tensors.
"""

import gc
import importlib.util
import os
import random
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

# An empty name is none: `DINOV2_ROOT= make test` runs without that checkout.
for _variable in ("DINO_ROOT", "DINOV2_ROOT", "DINOV3_ROOT", "ATTN_PLUGINS_REAL_DATA"):
    if not os.environ.get(_variable, "unset"):
        del os.environ[_variable]

# A change is judged by the same draws every time; `make nightly` (--hypothesis-profile explore) draws more new ones.
settings.register_profile("same draws", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True, max_examples=300)
settings.load_profile("same draws")


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test is one process of several by what Lightning or mmengine left in the environment of another."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Every test starts from the same state, whichever run before it in its process."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """No test meets dynamo's limit of recompilations by what tests before it have compiled."""
    yield
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None and dynamo.counters["frames"]:
        torch.compiler.reset()
        dynamo.counters.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: two workers, who take whole files, then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What was imported stays: mmengine collects garbage for every data set, and would look through it each time."""
    gc.collect()
    gc.freeze()
