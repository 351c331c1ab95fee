"""What cannot be patched is refused, named or stopped; it never goes on with softmax in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from . import either
from .entry import DIM, SIDE, Entry, built, entmax15, made, one, softmax, tensors, tokens
from .negatives import GRID_IN, TOKENS_IN
from .outcome import REFUSALS, alone, beside
from .test_zoo import same

Inputs = Callable[[], tuple[Any, ...]]

NEGATIVES = [
    *(pytest.param(cls, one, id=cls.__name__) for cls in TOKENS_IN),
    *(pytest.param(cls, lambda: (tokens(2, SIDE, SIDE, DIM),), id=cls.__name__) for cls in GRID_IN),
]

every_either = pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in either.ZOO])


@pytest.mark.parametrize(("cls", "inputs"), NEGATIVES)
def test_refused_where_there_is_nothing_else(cls: type[nn.Module], inputs: Inputs) -> None:
    assert alone(cls, inputs) in REFUSALS


@pytest.mark.parametrize(("cls", "inputs"), NEGATIVES)
def test_named_beside_attention_that_is_patched(cls: type[nn.Module], inputs: Inputs) -> None:
    assert beside(cls, inputs) in {*REFUSALS, "named"}


@every_either
def test_the_reference_is_the_module(entry: Entry) -> None:
    model, inputs = built(entry.build), made(entry.inputs)
    expected = model(*inputs)
    same(entry.reference(model.attn, softmax, *inputs), expected)
    sparse = entry.reference(model.attn, entmax15, *inputs)
    assert max((a - b).norm() / b.norm() for a, b in zip(tensors(sparse), tensors(expected), strict=True)) > 1e-2


@every_either
def test_right_or_refused_where_there_is_nothing_else(entry: Entry) -> None:
    assert alone(entry.build, entry.inputs, entry.reference) in {*REFUSALS, "answered"}


@every_either
def test_right_or_named_beside_attention_that_is_patched(entry: Entry) -> None:
    assert beside(entry.build, entry.inputs, entry.reference) in {*REFUSALS, "named", "answered"}
