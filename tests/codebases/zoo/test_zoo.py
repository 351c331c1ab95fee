"""Every entry of the zoo computes entmax where upstream has softmax, and upstream's output again afterwards."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import attn_plugins

from . import (
    entries_cross,
    entries_dino,
    entries_heads,
    entries_masks,
    entries_mha,
    entries_parts,
    entries_pooled,
    entries_spelling,
    entries_steps,
    entries_windows,
)
from .entry import Entry, Host, built, entmax15, made, softmax, tensors, user_warnings

ENTRIES: list[Entry] = [
    *entries_dino.ZOO,
    *entries_masks.ZOO,
    *entries_windows.ZOO,
    *entries_heads.ZOO,
    *entries_pooled.ZOO,
    *entries_cross.ZOO,
    *entries_mha.ZOO,
    *entries_spelling.ZOO,
    *entries_steps.ZOO,
    *entries_parts.ZOO,
]

every_entry = pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in ENTRIES])


def patched(entry: Entry, model: Host, spec: str) -> Host:
    """The model patched as a whole, or its pooling head by name; no attention may be reported as left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attn_plugins.patch(model, spec, layers=entry.layers)
    assert not user_warnings(caught)
    return model


def same(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Same structure and tensors, within ``tolerance`` of the largest value."""
    assert type(actual) is type(expected)
    ours, wanted = tensors(actual), tensors(expected)
    assert len(ours) == len(wanted) > 0
    for a, b in zip(ours, wanted, strict=True):
        largest = max(1.0, b.detach().abs().max().item())
        torch.testing.assert_close(a, b, atol=tolerance * largest, rtol=0, check_dtype=False)


def test_there_are_enough_and_no_name_stands_twice() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES) >= 45


@every_entry
def test_the_reference_is_the_module_and_entmax_another_function(entry: Entry) -> None:
    model, inputs = built(entry.build), made(entry.inputs)
    expected = model(*inputs)
    same(entry.reference(model.attn, softmax, *inputs), expected)
    sparse = entry.reference(model.attn, entmax15, *inputs)
    assert max((a - b).norm() / b.norm() for a, b in zip(tensors(sparse), tensors(expected), strict=True)) > 1e-2


@every_entry
def test_softmax_changes_nothing(entry: Entry) -> None:
    model, inputs = built(entry.build), made(entry.inputs)
    before = model(*inputs)
    same(patched(entry, model, "softmax")(*inputs), before)


@every_entry
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_entmax_is_the_reference(entry: Entry, training: bool) -> None:
    model, inputs = built(entry.build).train(training), made(entry.inputs)
    expected = entry.reference(model.attn, entmax15, *inputs)
    same(patched(entry, model, "entmax15")(*inputs), expected)


@every_entry
def test_single_precision(entry: Entry) -> None:
    """float32 may take another backend; the reference has the same weights and inputs in float64."""
    model, inputs = built(entry.build, torch.float32), made(entry.inputs, torch.float32)
    double = [x.detach().double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    double = [[y.detach().double() for y in x] if isinstance(x, list) else x for x in double]
    expected = entry.reference(copy.deepcopy(model).double().attn, entmax15, *double)
    same(patched(entry, model, "entmax15")(*inputs), expected, 1e-4)


@every_entry
def test_gradients_are_the_references(entry: Entry) -> None:
    model, inputs = built(entry.build).train(), made(entry.inputs)
    expected = gradients(model, entry.reference(model.attn, entmax15, *inputs), inputs)
    patched(entry, model, "entmax15")
    actual = gradients(model, model(*inputs), inputs)
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        same(actual[name], wanted)


def gradients(model: Host, output: Any, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Of a fixed random projection of every output, by input and parameter; what has none is left out."""
    generator = torch.Generator().manual_seed(2)
    outputs = [y for y in tensors(output) if y.requires_grad]
    # Drawn in float64 whatever the output is: a map in float32 must meet the same numbers.
    factors = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in outputs]
    loss = torch.stack([(y * factor).sum() for y, factor in zip(outputs, factors, strict=True)]).sum()
    leaves = {f"input {i}": x for i, x in enumerate(tensors(inputs)) if x.requires_grad}
    leaves |= dict(model.named_parameters())
    for leaf in leaves.values():
        leaf.grad = None
    # backward() and not autograd.grad(), which reentrant checkpointing refuses.
    loss.backward()
    return {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}


@every_entry
def test_unpatched_outputs_come_back_bit_for_bit(entry: Entry) -> None:
    model, inputs = built(entry.build), made(entry.inputs)
    before, kinds = tensors(model(*inputs)), [type(module) for module in model.modules()]
    patched(entry, model, "entmax15")
    model(*inputs)
    attn_plugins.unpatch(model)
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(a, b) for a, b in zip(tensors(model(*inputs)), before, strict=True))


@every_entry
def test_a_copy_computes_the_same(entry: Entry) -> None:
    model, inputs = built(entry.build), made(entry.inputs)
    patched(entry, model, "entmax15")
    other = copy.deepcopy(model)
    attn_plugins.unpatch(model)  # the copy has to stand on its own
    same(other(*inputs), entry.reference(model.attn, entmax15, *inputs))


@every_entry
def test_describe_names_the_layer(entry: Entry) -> None:
    lines = attn_plugins.describe(patched(entry, built(entry.build), "entmax15"))
    reached = {line.path for line in lines if line.spec == "entmax15"}
    wanted = {f"attn.{site}".rstrip(".") for site in entry.sites}
    missing = {site for site in wanted if not any(path == site or path.startswith(site + ".") for path in reached)}
    assert not missing, f"not shown as patched: {missing}\n{lines}"
    assert all(line.spec == "entmax15" for line in lines), lines
