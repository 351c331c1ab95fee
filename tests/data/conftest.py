"""Small data sets of every layout, written once for all tests that only read them."""

from __future__ import annotations

from typing import Any

import pytest

from attn_plugins.data.layouts import LAYOUTS

from .made import Made


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("data")
    arguments: dict[str, Any] = {"size": (64, 96), "seed": 3, "num_train": 22, "num_val": 20}
    roots = {name: write(base / name, **arguments) for name, write in LAYOUTS.items()}
    return Made(roots, **arguments)
