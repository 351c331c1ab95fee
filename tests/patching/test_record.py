"""The spec in a state dict: as a tensor in every layer, through all that happens to state dicts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_vit import TinyViT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import attn_plugins
from attn_plugins.checkpoints import recorded_spec, save
from attn_plugins.patching import spec_of
from attn_plugins.record import RECORD, decode, encode, records_in

from .models import images, tiny_vit

State = dict[str, Tensor]


def averaged(state: State) -> State:
    """An exponential moving average of a thousand equal states, as trainers compute it, in place."""
    average = {key: value.clone() for key, value in state.items()}
    for _ in range(1000):
        for key, value in state.items():
            average[key].copy_(average[key] * 0.996 + value * 0.004)
    return average


WAYS: dict[str, Callable[[State], Any]] = {
    "as it is": dict,
    "prefixed": lambda state: {f"module.student.backbone.{key}": value for key, value in state.items()},
    "half": lambda state: {key: value.half() for key, value in state.items()},
    "bfloat16": lambda state: {key: value.bfloat16() for key, value in state.items()},
    "float64": lambda state: {key: value.double() for key, value in state.items()},
    "averaged": averaged,
    "one block": lambda state: {key: value for key, value in state.items() if key.startswith("blocks.2.")},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_spec_is_told_after(way: str) -> None:
    model = attn_plugins.patch(tiny_vit(), "entmax:alpha=1.3")
    found = records_in(WAYS[way](model.state_dict()))
    assert found and all(record == {"spec": "entmax:alpha=1.3"} for record in found.values())
    assert all(layer.endswith("attn") for layer in found)


def test_layers_tell_their_own_normalizer() -> None:
    model = attn_plugins.patch(tiny_vit(), "entmax15", layers=[0, 1])
    attn_plugins.patch(model, "sparsemax", layers=[1, 3])
    specs = {layer: record["spec"] for layer, record in records_in(model.state_dict()).items()}
    assert specs == {"blocks.0.attn": "entmax15", "blocks.1.attn": "sparsemax", "blocks.3.attn": "sparsemax"}


def test_weights_of_another_spec_are_refused_before_anything_changes() -> None:
    theirs = attn_plugins.patch(tiny_vit(), "entmax15").state_dict()
    model = attn_plugins.patch(tiny_vit(), "sparsemax")
    before = copy.deepcopy(model.state_dict())
    changed = {key: value + 1 if value.is_floating_point() else value for key, value in theirs.items()}
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"blocks\.0\.attn\.attn_plugins_record: .*'entmax15'.*'sparsemax'"):
            model.load_state_dict(changed, strict=strict)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    on_purpose = {key: value for key, value in changed.items() if not key.endswith(RECORD)}
    model.load_state_dict(on_purpose, strict=True)
    assert records_in(model.state_dict())["blocks.0.attn"] == {"spec": "sparsemax"}


def test_weights_without_a_record_load_strictly() -> None:
    bare, model = tiny_vit(), attn_plugins.patch(tiny_vit(), "entmax15")
    assert model.load_state_dict(bare.state_dict(), strict=True) == ([], [])


def test_an_average_over_two_specs_is_noticed() -> None:
    one, other = (attn_plugins.patch(tiny_vit(), spec).state_dict() for spec in ("sparsemax", "entmax15"))
    key = f"blocks.0.attn.{RECORD}"
    size = min(one[key].numel(), other[key].numel())
    mixed = (one[key][:size].float() + other[key][:size].float()) / 2
    with pytest.raises(ValueError, match="record of attn_plugins"):
        decode(mixed)


def test_an_empty_buffer_is_written_anew() -> None:
    """``to_empty`` leaves memory as it finds it; what is saved then must still be true."""
    with torch.device("meta"):
        model = tiny_vit()
    attn_plugins.patch(model, "entmax15").to_empty(device="cpu")
    for module in model.modules():
        if RECORD in module._buffers:
            module.get_buffer(RECORD).zero_()
    assert {record["spec"] for record in records_in(model.state_dict()).values()} == {"entmax15"}


def test_a_patch_that_was_lost_is_not_told_as_one() -> None:
    class Merged(type(tiny_vit().blocks[0].attn)):  # type: ignore[misc]
        pass

    model = attn_plugins.patch(tiny_vit(), "entmax15")
    model.blocks[1].attn.__class__ = Merged
    state: Any = model.state_dict()
    assert records_in(state)["blocks.1.attn"] == {"spec": "entmax15", "lost": True}
    assert state._metadata[""]["attn_plugins"]["lost"] == ["blocks.1.attn"]
    with pytest.raises(ValueError, match=r"patch lost in blocks\.1\.attn"):
        attn_plugins.patching.spec_of(model)
    with pytest.raises(ValueError, match="patch lost"):
        attn_plugins.verify(model, images())
    with pytest.raises(ValueError, match=r"blocks\.1\.attn.*was lost"):
        attn_plugins.patch(tiny_vit(), "entmax15").load_state_dict(state)


def compiled(model: Any) -> None:
    model.blocks[0] = torch.compile(model.blocks[0])
    model.blocks[1].attn = torch.compile(model.blocks[1].attn)


def checkpointed(model: Any) -> None:
    model.blocks[0] = checkpoint_wrapper(model.blocks[0])
    model.blocks[1].attn = checkpoint_wrapper(model.blocks[1].attn)


@pytest.mark.parametrize("wrap", [compiled, checkpointed])
def test_a_layer_inside_a_wrapper_is_not_lost(wrap: Callable[[Any], None]) -> None:
    model = attn_plugins.patch(TinyViT(), "entmax15")
    wrap(model)
    assert spec_of(model) == "entmax15"
    state: Any = model.state_dict()
    assert "lost" not in state._metadata[""]["attn_plugins"]
    model.load_state_dict(state)
    inner: Any = model.blocks[1].attn
    inner = getattr(inner, "_orig_mod", None) or inner._checkpoint_wrapped_module
    inner.__class__ = nn.Module
    with pytest.raises(ValueError, match=r"patch lost in blocks\.1\.attn"):
        spec_of(model)


def test_a_replaced_layer_is_a_lost_patch() -> None:
    model = attn_plugins.patch(tiny_vit(), "entmax15")
    model.blocks[2].attn = tiny_vit().blocks[0].attn
    notes = {line.path: (line.spec, line.note) for line in attn_plugins.describe(model)}
    assert notes["blocks.2.attn"] == (None, "patch lost: the layer was replaced by a Attention")
    with pytest.raises(ValueError, match="patch lost"):
        attn_plugins.patching.spec_of(model)


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20) | st.booleans(), max_size=4))
def test_any_record_comes_back(fields: dict[str, Any]) -> None:
    record = {**fields, "spec": "entmax15"}
    assert decode(encode(record).to(torch.float16)) == record


@given(st.lists(st.integers(0, 255), max_size=60))
def test_other_tensors_are_no_records(values: list[int]) -> None:
    with pytest.raises(ValueError, match="record of attn_plugins"):
        decode(torch.tensor(values, dtype=torch.uint8))


@pytest.mark.parametrize(
    "tensor", [torch.empty(3, 2), torch.full((4,), torch.nan), torch.empty(4, device="meta"), torch.ones(2) * 1e9]
)
def test_odd_tensors_are_no_records(tensor: Tensor) -> None:
    with pytest.raises(ValueError, match="record of attn_plugins"):
        decode(tensor)


def test_init_weights_after_to_empty_starts_learnable_alphas() -> None:
    class Starting(TinyViT):
        def init_weights(self) -> None:
            for parameter in self.parameters():
                if not parameter.is_meta:
                    nn.init.normal_(parameter)

    with torch.device("meta"):
        model = Starting()
    attn_plugins.patch(model, "entmax_alpha:init=1.25").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_weights()
    for site in attn_plugins.patching.find_attention(model):
        normalizer: Any = site.module.attn_plugins_normalizer
        torch.testing.assert_close(normalizer.alpha, torch.full((2,), 1.25))
    attn_plugins.unpatch(model)
    assert "init_weights" not in vars(model) and type(model) is Starting


def test_nothing_stays_behind_of_what_trainers_do() -> None:
    from attn_plugins.trainers import patch_networks

    bare, model = tiny_vit(), tiny_vit()
    for _ in range(3):
        patch_networks("entmax15", model)
    attn_plugins.unpatch(model)
    assert not model._load_state_dict_pre_hooks and not model._state_dict_hooks
    assert not any(name.startswith("attn_plugins") for module in model.modules() for name in vars(module))
    assert type(model) is type(bare)


def test_a_part_of_what_was_patched_tells_its_spec_too(tmp_path: Path) -> None:
    whole = nn.ModuleDict({"net": tiny_vit()})
    attn_plugins.patch(whole, "entmax15")
    assert spec_of(whole["net"]) == "entmax15"
    assert recorded_spec(save(tmp_path / "part.pth", whole["net"]))[0] == "entmax15"
    attn_plugins.patch(whole, "sparsemax@0+entmax15@1")
    assert spec_of(whole["net"]) == spec_of(whole)
    attn_plugins.patch(whole, "sparsemax")
    attn_plugins.patch(whole, "entmax15", layers=[0])
    with pytest.raises(ValueError, match="patched one by one, with entmax15, sparsemax"):
        spec_of(whole["net"])
