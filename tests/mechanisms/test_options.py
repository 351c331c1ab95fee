"""Options of mechanisms and of entmax_alpha: what the papers and codebases do, against their formulas."""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

import attn_plugins
from attn_plugins import trainers
from attn_plugins.checkpoints import identify, load_backbone
from attn_plugins.patching.record import spec_of

from .tiny_vits import FAMILIES, HEADS, WIDTH, dinov1, dinov2, images, timm, trained

REGISTERS = "attn_plugins_registers.register_tokens."


def outputs_of_projection(model: Any) -> list[tuple[Tensor, Tensor]]:
    """What enters each projection's linear map, and the block's normed input."""
    seen = []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
        block.attn.proj.register_forward_hook(lambda module, args, out: seen.append((args[0].detach(), out.detach())))
    model(images())
    return seen


@pytest.mark.parametrize("spec", ["gated:paper=true", "gated:headwise=true", "gated:headwise=true,paper=true"])
def test_gates_are_what_they_say(spec: str) -> None:
    model = attn_plugins.patch(timm(), spec).eval()
    gate = model.blocks[0].attn.proj.attn_plugins_gated
    paper, rows = "paper" in spec, HEADS if "headwise" in spec else WIDTH
    assert gate.weight.shape == (rows, WIDTH) and (gate.bias is None) == paper
    if paper:
        assert 0.015 < float(gate.weight.std()) < 0.025
    trained(model)
    normed, (entered, out) = outputs_of_projection(model)[:2]
    values = torch.sigmoid(normed @ gate.weight.T + (0 if paper else gate.bias)) * (1 if paper else 2)
    values = values.repeat_interleave(WIDTH // rows, -1)
    projection = model.blocks[0].attn.proj
    torch.testing.assert_close(out, F.linear(entered * values, projection.weight, projection.bias))


def test_the_papers_gate_starts_near_a_half_and_ours_at_one() -> None:
    for spec, expected in (("gated:paper=true", 0.5), ("gated", 1.0), ("gated:headwise=true", 1.0)):
        model = attn_plugins.patch(timm(), spec).eval()
        gates = model.blocks[0].attn.proj.attn_plugins_gated(torch.randn(50, WIDTH))
        assert gates.shape == (50, WIDTH) and float(gates.mean()) == pytest.approx(expected, abs=0.02)


def test_gates_a_head_need_heads() -> None:
    model = timm()
    for block in model.blocks:
        block.attn.num_heads = 7
    with pytest.raises(attn_plugins.UnsupportedModelError, match="48 channels and tells 7 heads"):
        attn_plugins.patch(model, "gated:headwise=true")


def test_registers_start_and_decay_as_asked() -> None:
    torch.manual_seed(0)
    for spec, std, name in (
        ("registers:num=64", 1e-6, "bias"),
        ("registers:num=64,std=0.02,decay=true", 0.02, "weight"),
    ):
        model = attn_plugins.patch(timm(), spec)
        (tokens,) = [(key, value) for key, value in model.named_parameters() if "registers" in key]
        assert tokens[0] == f"attn_plugins_registers.register_tokens.{name}"
        assert float(tokens[1].std()) == pytest.approx(std, rel=0.1)
        assert model(images()).shape == (2, WIDTH)
    with pytest.raises(ValueError, match="std=0"):
        attn_plugins.patch(timm(), "registers:std=0")
    for bad, says in (("std=small", "std='small'"), ("std=true", "std=True"), ("decay=1", "decay=1")):
        with pytest.raises(ValueError, match=says):
            attn_plugins.patch(timm(), f"registers:{bad}")


OWN = {
    "dinov2": ("num_register_tokens", "register_tokens", 1e-6),
    "dinov3": ("n_storage_tokens", "storage_tokens", 0.02),
}


def param_groups(codebase: str, model: Any) -> dict[str, Any]:
    """What the codebase's own trainer makes of a backbone's parameters: {name: group}."""
    if codebase == "dinov2":
        groups = importlib.import_module("dinov2.utils.param_groups").get_params_groups_with_decay(model, 0.5)
    else:
        groups = importlib.import_module("dinov3.train.param_groups").get_params_groups_with_decay_fsdp(model, 0.5)
    return {group["name"]: group for group in groups}


@pytest.mark.parametrize("codebase", OWN)
def test_in_its_trainer_registers_start_and_decay_as_the_codebases_own(codebase: str) -> None:
    torch.manual_seed(0)
    option, name, std = OWN[codebase]
    native, ours, told = FAMILIES[codebase].build(**{option: 64}), *(FAMILIES[codebase].build() for _ in range(2))
    trainers.patch_networks("entmax15+registers:num=64", ours)
    trainers.patch_networks("entmax15+registers:num=64,std=0.5,decay=false", told)
    assert spec_of(ours) == f"entmax15+registers:decay=true,num=64,std={std}"
    assert spec_of(told) == "entmax15+registers:decay=false,num=64,std=0.5"
    for model in (native, ours, told):
        model.init_weights()  # as both trainers do
    own, added = (model.get_parameter(p) for model, p in ((native, name), (ours, REGISTERS + "weight")))
    assert float(own.std()) == pytest.approx(std, rel=0.1) and float(added.std()) == pytest.approx(std, rel=0.1)
    assert float(told.get_parameter(REGISTERS + "bias").std()) == pytest.approx(0.5, rel=0.1)
    assert param_groups(codebase, native)[name]["wd_multiplier"] == 1
    assert param_groups(codebase, ours)[REGISTERS + "weight"]["wd_multiplier"] == 1
    assert param_groups(codebase, told)[REGISTERS + "bias"]["wd_multiplier"] == 0


@pytest.mark.parametrize("build", [dinov1, timm])
def test_codebases_whose_trainers_say_nothing_of_registers_get_this_packages(build: Callable[[], Any]) -> None:
    model = build()
    trainers.patch_networks("registers:num=64", model)
    assert spec_of(model) == "registers:num=64"
    assert float(model.get_parameter(REGISTERS + "bias").std()) == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize("text", ["registers:num=2", "registers:num=2,decay=true,std=0.02"])
def test_weights_are_the_same_however_they_were_trained(text: str, tmp_path: Path) -> None:
    by_dinov2 = dinov2()
    trainers.patch_networks("registers:num=2", by_dinov2)
    trained(by_dinov2)
    file = tmp_path / "eval" / "training_1" / "teacher_checkpoint.pth"
    file.parent.mkdir(parents=True)
    torch.save({"teacher": {f"backbone.{key}": value for key, value in by_dinov2.state_dict().items()}}, file)
    (tmp_path / "config.yaml").write_text("student: {attn_plugins: 'registers:num=2'}\n")
    by_torch, by_file = (attn_plugins.patch(dinov2(), text).eval() for _ in range(2))
    by_torch.load_state_dict(by_dinov2.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainers.before_load(by_file, file)
        load_backbone(by_file, file)
        assert identify(file).spec == "registers:decay=true,num=2,std=1e-06"
    expected = by_dinov2.eval()(images())
    torch.testing.assert_close(by_torch(images()), expected)
    torch.testing.assert_close(by_file(images()), expected)
    with pytest.raises(ValueError, match="registers:num=3"):
        by_dinov2.load_state_dict(attn_plugins.patch(dinov2(), "registers:num=3").state_dict())


def test_patching_again_by_the_short_name_keeps_what_a_trainer_taught() -> None:
    model = dinov2()
    trainers.patch_networks("registers:num=2", model)
    trainers.patch_networks("registers:num=2", model)  # by the launcher and by the flag
    tokens = model.get_parameter(REGISTERS + "weight")
    attn_plugins.patch(model, "entmax15+registers:num=2")
    assert model.get_parameter(REGISTERS + "weight") is tokens
    assert spec_of(model) == "entmax15+registers:decay=true,num=2,std=1e-06"
    attn_plugins.patch(model, "registers:num=3")
    assert spec_of(model) == "registers:num=3"


def test_alphas_are_drawn_as_the_authors_draw_them() -> None:
    torch.manual_seed(0)
    layers = [attn_plugins.functional.EntmaxAlpha(64, drawn=True) for _ in range(8)]
    logits = torch.cat([layer.logit.detach() for layer in layers])
    assert stats.kstest(logits.numpy(), "norm").pvalue > 0.001
    model = attn_plugins.patch(timm(), "entmax_alpha:drawn=true")
    alphas = torch.cat([block.attn.attn_plugins_normalizer.alpha for block in model.blocks])
    assert len(alphas.unique()) == len(alphas) == 3 * HEADS
    assert model(images()).isfinite().all()
