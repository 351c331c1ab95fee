"""The spec travels: from every container of a state dict it is recovered, and the model computes alike."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import together

import attn_plugins
from attn_plugins.checkpoints import CheckpointError, build, identify, load_backbone, recorded_spec
from attn_plugins.checkpoints.building import chosen_plugins
from attn_plugins.cli import main

from .models import ARCH, CONTAINERS, OPTIONS, bare, images, patched, prefixed, torch_file

COARSE = {"half": 5e-2, "bfloat16": 0.3}
SPECS = ["entmax15", "entmax_alpha+registers:num=2"]


def built(path: Path, plugins: str = "auto", **options: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    return build(ARCH, path, plugins, **OPTIONS | options)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_the_spec_is_recovered(container: str, spec: str, tmp_path: Path) -> None:
    model = patched(spec)
    path = CONTAINERS[container](model.state_dict(), tmp_path)
    assert identify(path).spec == recorded_spec(path)[0] == spec
    assert chosen_plugins(path)[0].source == "recorded"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*assumed")
        loaded, identity = built(path)
    assert (identity["plugins"], identity["plugins_source"]) == (spec, "recorded")
    with torch.no_grad():
        torch.testing.assert_close(loaded(images()), model(images()), rtol=0, atol=COARSE.get(container, 1e-5))
    with pytest.raises(CheckpointError, match="'softmax' was asked for"):
        built(path, "softmax")
    with pytest.raises(CheckpointError, match="'softmax' was asked for"):
        load_backbone(bare(), path)


@pytest.mark.parametrize("container", ["plain", "DDP", "half", "iBOT", "safetensors", "distributed"])
def test_layers_with_specs_of_their_own_are_patched_one_by_one(container: str, tmp_path: Path) -> None:
    model = attn_plugins.patch(bare(), "entmax15+registers:num=1", [0])
    model = attn_plugins.patch(model, "sparsemax+registers:num=1", [2])
    path = CONTAINERS[container](model.state_dict(), tmp_path)
    info = identify(path)
    assert info.layers == {
        "blocks.0.attn": "entmax15+registers:num=1",
        "blocks.2.attn": "sparsemax+registers:num=1",
    }
    loaded, identity = built(path)
    assert [line.spec for line in attn_plugins.describe(loaded)] == ["entmax15", None, "sparsemax"]
    assert identity["plugin_layers"] == {
        "blocks.0.attn": "entmax15",
        "blocks.1.attn": None,
        "blocks.2.attn": "sparsemax",
    }
    with torch.no_grad():
        torch.testing.assert_close(loaded(images()), model(images()), rtol=0, atol=COARSE.get(container, 1e-6))


def test_layers_of_older_files_are_patched_one_by_one(tmp_path: Path) -> None:
    model = attn_plugins.patch(bare(), "entmax15", [0, 2])
    state = model.state_dict()
    for name in [name for name in state if name.endswith("attn_plugins_record")]:
        del state[name]
    path = torch_file(state, tmp_path)
    assert identify(path).order == ("entmax15", None, "entmax15")
    loaded, identity = built(path)
    assert [line.spec for line in attn_plugins.describe(loaded)] == ["entmax15", None, "entmax15"]
    assert identity["plugin_layers"] == {
        "blocks.0.attn": "entmax15",
        "blocks.1.attn": None,
        "blocks.2.attn": "entmax15",
    }
    torch.testing.assert_close(loaded(images()), model(images()))


def test_a_bare_timm_model_does_not_take_patched_weights(tmp_path: Path) -> None:
    import timm

    path = torch_file(dict(patched("entmax15").state_dict()), tmp_path)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*attn_plugins_record"):
        timm.create_model(ARCH.removeprefix("timm/"), num_classes=0, checkpoint_path=str(path), **OPTIONS)


@pytest.mark.parametrize("spec", SPECS)
def test_a_folder_of_timms_hub(spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from timm.models import save_for_hf

    model = patched(spec)
    save_for_hf(model, str(tmp_path), model_args=OPTIONS, safe_serialization=True)
    loaded, identity = build(checkpoint=tmp_path)
    assert (identity["plugins"], identity["arch"]) == (spec, ARCH)
    torch.testing.assert_close(loaded(images()), model(images()), rtol=0, atol=0)
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{spec} (from the layers' records)" in printed and "built as      timm/vit_tiny_patch16_224 {" in printed


@pytest.mark.slow
def test_halves_that_two_processes_wrote_are_put_together(tmp_path: Path) -> None:
    model = patched("entmax_alpha+registers:num=2")
    torch.save(dict(model.state_dict()), tmp_path / "whole.pth")
    script = Path(__file__).with_name("sharded.py")
    together(2, script, tmp_path)
    assert len(list((tmp_path / "sharded").glob("*.distcp"))) == 2
    loaded, identity = built(tmp_path / "sharded")
    assert identity["plugins_source"] == "recorded"
    torch.testing.assert_close(loaded(images()), model(images()), rtol=0, atol=0)


def silent(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("attn_plugins_record")}


def test_a_file_that_says_nothing_is_not_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = torch_file(silent(patched("entmax15").state_dict()), tmp_path)
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "not recorded" in printed and "softmax" not in printed
    with pytest.warns(UserWarning, match=r"does not record the plugins.*softmax is assumed"):
        _, identity = built(path)
    assert (identity["plugins"], identity["plugins_source"]) == ("softmax", "assumed")
    assert built(path, "softmax")[1]["plugins_source"] == "asked for"


@pytest.mark.parametrize("spec", ["entmax_alpha", "registers:num=2", "specialization"])
def test_parameters_of_plugins_without_a_record_ask_for_the_spec(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = patched(spec)
    path = torch_file(silent(model.state_dict()), tmp_path)
    with pytest.raises(CheckpointError, match=r"does not record the spec.*--plugins"):
        built(path)
    with pytest.raises(CheckpointError, match=r"does not fit.*Unexpected: \['.*attn_plugins_"):
        built(path, "entmax15")
    loaded, identity = built(path, spec)
    assert identity["plugins_source"] == "asked for"
    torch.testing.assert_close(loaded(images()), model(images()))
    assert main(["inspect", str(path)]) == 0
    assert "not recorded, but it holds parameters of plugins" in capsys.readouterr().out


def test_records_and_other_places_must_agree(tmp_path: Path) -> None:
    state = patched("entmax15").state_dict()
    with pytest.raises(CheckpointError, match="more than one spec"):
        identify(torch_file({"model": state, "attn_plugins": {"spec": "sparsemax"}}, tmp_path))
    other = patched("sparsemax+registers:num=2").state_dict()
    mixed = {**state, "blocks.1.attn.attn_plugins_record": other["blocks.1.attn.attn_plugins_record"]}
    with pytest.raises(CheckpointError, match="more than one spec"):
        identify(torch_file(mixed, tmp_path))


def test_an_average_over_different_specs_is_damaged(tmp_path: Path) -> None:
    a, b = patched("entmax15").state_dict(), patched("sparsemax").state_dict()
    key = "blocks.1.attn.attn_plugins_record"
    size = min(len(a[key]), len(b[key])) // 2 * 2
    mean = {name: (t.float()[:size] + b[name].float()[:size]) / 2 if name == key else t for name, t in a.items()}
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.attn_plugins_record: a"):
        identify(torch_file(prefixed(mean, "module."), tmp_path))


def test_a_spec_that_is_unknown_here_is_refused_by_name(tmp_path: Path) -> None:
    path = torch_file({"model": bare().state_dict(), "attn_plugins": {"spec": "mine"}}, tmp_path)
    with pytest.raises(CheckpointError, match=r"tells the spec 'mine'.*unknown normalizer"):
        identify(path)
    path = torch_file({"model": bare().state_dict(), "attn_plugins": {"spec": "unregistered:lab.mine"}}, tmp_path)
    assert identify(path).spec == "unregistered:lab.mine"
    with pytest.raises(CheckpointError, match=r"register it.*--plugins"):
        built(path)
    assert built(path, "sparsemax")[1]["plugins_source"] == "asked for"


def test_another_spec_is_shown_where_that_is_meant(tmp_path: Path) -> None:
    path = torch_file(patched("entmax15").state_dict(), tmp_path)
    loaded, identity = built(path, "softmax", other_spec=True)
    assert (identity["plugins"], identity["plugins_recorded"]) == ("softmax", "entmax15")
    assert all(line.spec in (None, "softmax") for line in attn_plugins.describe(loaded))


def test_a_model_whose_layers_differ_from_the_files_is_not_filled(tmp_path: Path) -> None:
    path = torch_file(patched("entmax15", [0, 2]).state_dict(), tmp_path)
    load_backbone(patched("entmax15", [0, 2]), path)
    model = patched("entmax15")
    before = model.state_dict()["norm.weight"].clone()
    with pytest.raises(CheckpointError, match=r"in the layers \['blocks\.1\.attn'\]: \[None\] for \['entmax15'\]"):
        load_backbone(model, path)
    assert model.state_dict()["norm.weight"].equal(before)


def test_a_patch_that_was_lost_before_saving_is_named(tmp_path: Path) -> None:
    model: Any = patched("entmax15")
    model.blocks[1].attn.__class__ = type("Merging", (type(bare().get_submodule("blocks.1.attn")),), {})
    for contents in (model.state_dict(), dict(model.state_dict())):
        path = torch_file(contents, tmp_path)
        with pytest.raises(CheckpointError, match=r"patch was lost in the layers \['blocks\.1\.attn'\]"):
            identify(path)
