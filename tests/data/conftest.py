"""Small data sets of every layout, written once for all tests that only read them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from attn_plugins.data.layouts import LAYOUTS


class Made(NamedTuple):
    """What was written with which arguments; `roots` maps a data set's name to its data root."""

    roots: dict[str, Path]
    size: tuple[int, int]
    seed: int
    num_train: int
    num_val: int


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("data")
    arguments = {"size": (64, 96), "seed": 3, "num_train": 22, "num_val": 20}
    roots = {name: write(base / name, **arguments) for name, write in LAYOUTS.items()}
    return Made(roots, **arguments)  # type: ignore[arg-type]
