"""Specs that name layers: what each layer of a model gets, and that it is the same after every way through a file."""

from __future__ import annotations

import argparse
import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from patching.models import tiny_vit
from torch import Tensor, nn

import attn_plugins
from attn_plugins.checkpoints import CheckpointError, build, identify, load_backbone, save
from attn_plugins.trainers import patch_networks

DEPTH = 5
BUILT: dict[str, Any] = {"depth": 4, "img_size": 32, "patch_size": 16, "embed_dim": 24, "num_heads": 3}
OPTIONS: dict[str, Any] = {**BUILT, "num_classes": 0}
RAMP = "entmax@1-3:alpha=1.2..1.6+sparsemax@0+registers:num=2"


def specs(model: nn.Module) -> list[str | None]:
    return [line.spec for line in attn_plugins.describe(model)]


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **OPTIONS).eval()


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("entmax15@3", [None, None, None, "entmax15", None]),
        ("entmax15@1-3", [None, "entmax15", "entmax15", "entmax15", None]),
        ("sparsemax@0/4+entmax15@2", ["sparsemax", None, "entmax15", None, "sparsemax"]),
        ("entmax:alpha=1.1..1.5", [f"entmax:alpha={a}" for a in (1.1, 1.2, 1.3, 1.4, 1.5)]),
        ("entmax@2-4:alpha=1.5..1.1", [None, None, *(f"entmax:alpha={a}" for a in (1.5, 1.3, 1.1))]),
        ("entmax@4:alpha=1.1..1.5", [None] * 4 + ["entmax:alpha=1.1"]),
    ],
)
def test_what_each_layer_gets(spec: str, expected: list[str | None]) -> None:
    assert specs(attn_plugins.patch(tiny_vit(DEPTH), spec)) == expected


def test_it_is_what_layers_and_single_patches_do() -> None:
    model, other = vit(), vit()
    attn_plugins.patch(model, "entmax@2-3:alpha=1.2..1.4+sparsemax@1")
    for layer, spec in {1: "sparsemax", 2: "entmax:alpha=1.2", 3: "entmax:alpha=1.4"}.items():
        attn_plugins.patch(other, spec, layers=layer)
    assert torch.equal(model(images()), other(images()))
    model.load_state_dict(other.state_dict())  # however it was asked for, the layers agree


@pytest.mark.parametrize("before", ["sparsemax", "entmax_alpha+registers", "sparsemax@3-4"])
def test_layers_that_are_not_named_get_their_own_attention_back(before: str) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224", **OPTIONS | {"depth": DEPTH}).eval()
    expected = attn_plugins.patch(copy.deepcopy(model), "entmax15@1-2")
    attn_plugins.patch(attn_plugins.patch(model, before), "entmax15@1-2")
    assert specs(model) == [None, "entmax15", "entmax15", None, None]
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert torch.equal(model(images()), expected(images()))
    assert [type(block.attn) for block in model.blocks] == [type(block.attn) for block in expected.blocks]


def test_unpatch_and_the_context_give_softmax_back() -> None:
    model, given = vit(), images()
    before, keys = model(given), list(model.state_dict())
    with attn_plugins.patched(model, RAMP):
        assert not torch.equal(model(given), before)
    assert torch.equal(attn_plugins.unpatch(attn_plugins.patch(model, RAMP))(given), before)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("entmax15@3-6", "names layer 5-6, and there are 5 attention layers: 0-4"),
        ("entmax15@0+sparsemax@9", "names layer 9"),
        ("entmax:alpha=0.5..1.5", "alpha of 1"),
    ],
)
def test_layers_that_do_not_exist_are_refused_before_anything_changes(spec: str, message: str) -> None:
    model = tiny_vit(DEPTH)
    with pytest.raises(ValueError, match=message):
        attn_plugins.patch(model, spec)
    assert specs(model) == [None] * DEPTH


@pytest.mark.parametrize("spec", ["entmax15@1", "entmax:alpha=1.1..1.5"])
def test_layers_are_named_in_one_place(spec: str) -> None:
    with pytest.raises(ValueError, match="name the layers in the spec"):
        attn_plugins.patch(tiny_vit(DEPTH), spec, layers=[1])
    with pytest.raises(ValueError, match="here one normalizer applies"):
        attn_plugins.attention(*torch.rand(3, 1, 1, 2, 4), normalizer=spec)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_it(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = attn_plugins.patch(vit(), RAMP)
    again = copied(model)
    assert specs(again) == specs(model) and torch.equal(again(images()), model(images()))
    assert specs(attn_plugins.patch(again, RAMP)) == specs(model)


def test_a_file_tells_it_and_a_model_is_built_from_it(tmp_path: Path) -> None:
    model = attn_plugins.patch(vit(), RAMP)
    file = save(tmp_path / "model.pt", model, arch="timm/vit_tiny_patch16_224", arch_options=OPTIONS)
    canonical = "sparsemax@0+entmax@1-3:alpha=1.2..1.6+registers:num=2"
    info = identify(file)
    assert info.spec == canonical and info.layers["blocks.2.attn"] == "entmax:alpha=1.4+registers:num=2"
    built, told = build(checkpoint=file)
    assert told["plugins"] == canonical and told["plugins_source"] == "recorded"
    assert specs(built) == specs(model) and torch.equal(built(images()), model(images()))
    again, _ = build(checkpoint=file, plugins=RAMP)
    assert torch.equal(again(images()), model(images()))
    with pytest.raises(CheckpointError, match="was trained with"):
        build(checkpoint=file, plugins="entmax15+registers:num=2")


def test_tensors_alone_tell_it(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = attn_plugins.patch(vit(), RAMP)
    safetensors.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    built, _ = build("timm/vit_tiny_patch16_224", tmp_path / "model.safetensors", **BUILT)
    assert specs(built) == specs(model) and torch.equal(built(images()), model(images()))
    other = attn_plugins.patch(vit(), RAMP)
    load_backbone(other, tmp_path / "model.safetensors")
    assert torch.equal(other(images()), model(images()))


def test_weights_of_other_layers_are_refused() -> None:
    weights = attn_plugins.patch(tiny_vit(DEPTH), "entmax:alpha=1.1..1.5").state_dict()
    with pytest.raises(ValueError, match=r"trained with 'entmax:alpha=1.1' and this layer has 'entmax:alpha=1.2'"):
        attn_plugins.patch(tiny_vit(DEPTH), "entmax:alpha=1.2..1.5").load_state_dict(weights)


def test_a_file_whose_layers_contradict_the_whole_is_refused(tmp_path: Path) -> None:
    model = attn_plugins.patch(vit(), "entmax15@1-2")
    state = {key.replace("blocks.2.attn.attn_plugins", "blocks.3.attn.attn_plugins"): value.clone()
             for key, value in model.state_dict().items()}  # fmt: skip
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="it was put together"):
        build("timm/vit_tiny_patch16_224", tmp_path / "model.pt", **BUILT)


def test_trainers_patch_it_once_and_refuse_another() -> None:
    student = tiny_vit(DEPTH)
    patch_networks("entmax15@1-2", student)
    patch_networks("entmax15@1-2", student)
    with pytest.raises(ValueError, match="has 'entmax15@1-2' already"):
        patch_networks("entmax15", student)
    same, other = tiny_vit(DEPTH), tiny_vit(DEPTH)
    patch_networks("entmax15@1-2", same)
    patch_networks("entmax15@0-2", other)
    same.load_state_dict(student.state_dict())
    with pytest.raises(ValueError, match="entmax15@1-2"):
        other.load_state_dict(student.state_dict())


def test_a_folder_of_transformers_tells_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48, image_size=32, patch_size=16
    )
    model = attn_plugins.patch(transformers.ViTModel(config).eval(), "entmax@1-2:alpha=1.2..1.4")
    model.save_pretrained(tmp_path)
    assert '"spec": "entmax@1-2:alpha=1.2..1.4"' in (tmp_path / "config.json").read_text()
    again = attn_plugins.from_pretrained(tmp_path)
    assert specs(again) == specs(model)
    assert torch.equal(again(images()).last_hidden_state, model(images()).last_hidden_state)


@pytest.mark.slow
def test_an_exported_program_computes_it() -> None:
    model = attn_plugins.patch(vit(), RAMP)
    with attn_plugins.exportable(model):
        program = torch.export.export(model, (images(),))
    torch.testing.assert_close(program.module()(images()), model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", ["entmax15@6-11", "sparsemax@0-2/9-11+entmax15@3-8", "entmax:alpha=1.1..1.5"])
def test_options_of_trainers_and_configs_hand_it_on_as_it_is(spec: str, tmp_path: Path) -> None:
    omegaconf, config = pytest.importorskip("omegaconf"), pytest.importorskip("mmengine.config")
    assert omegaconf.OmegaConf.from_dotlist([f"student.attn_plugins={spec}"]).student.attn_plugins == spec
    (tmp_path / "config.yaml").write_text(f"student:\n  attn_plugins: {spec}\n")
    assert omegaconf.OmegaConf.load(tmp_path / "config.yaml").student.attn_plugins == spec
    assert config.DictAction._parse_iterable(spec) == spec
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=config.DictAction)
    args = parser.parse_args(["--cfg-options", f"model.backbone.plugins={spec}"])
    assert args.cfg_options == {"model.backbone.plugins": spec}
