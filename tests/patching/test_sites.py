"""``layers=`` in all its forms chooses the layers that Python's own indexing of the list of paths does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attn_plugins

from .models import tiny_vit

DEPTH = 5
PATHS = [f"blocks.{n}.attn" for n in range(DEPTH)]


def chosen(layers: Any) -> list[str]:
    model = attn_plugins.patch(tiny_vit(DEPTH), "entmax15", layers=layers)
    return [line.path for line in attn_plugins.describe(model) if line.spec is not None]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-DEPTH, DEPTH - 1), min_size=1, max_size=6))
def test_indices(indices: list[int]) -> None:
    assert chosen(indices) == [path for path in PATHS if path in {PATHS[i] for i in indices}]


@settings(max_examples=25, deadline=None)
@given(st.slices(DEPTH).filter(lambda s: PATHS[s]))
def test_slices(wanted: slice) -> None:
    assert sorted(chosen(wanted)) == sorted(PATHS[wanted])


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, PATHS),
        (-1, PATHS[-1:]),
        (range(3, 5), PATHS[3:]),
        ((n for n in (0, 4)), [PATHS[0], PATHS[4]]),
        ("blocks.3", PATHS[3:4]),
        ("blocks.3.attn", PATHS[3:4]),
        ("blocks", PATHS),
        (["blocks.0", 2, "blocks.2.attn"], [PATHS[0], PATHS[2]]),
        (np.int64(-1), PATHS[4:]),
        (np.array([1, 3]), PATHS[1:4:2]),
        (lambda name, module: name.endswith("1.attn") and module.num_heads == 4, PATHS[1:2]),
    ],
)
def test_other_forms(layers: Iterable[int] | None, expected: list[str]) -> None:
    assert chosen(layers) == expected


@pytest.mark.parametrize("layers", ["blocks.1.at", "1", True, 1.0, [None], [1.0], np.float32(1)])
def test_what_names_no_layer_is_refused(layers: Any) -> None:
    with pytest.raises(ValueError, match="there is no attention layer"):
        chosen(layers)
