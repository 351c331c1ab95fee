"""Anneal on whole models: the same losses as patching anew at every step, and a run that stops half way goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_vit import TinyViT
from torch import nn

import attn_plugins
from attn_plugins import Anneal
from attn_plugins.checkpoints import save
from attn_plugins.functional.scale import HeadScale
from attn_plugins.patching import find_attention, spec_of
from attn_plugins.spec import parse

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(depth: int = 2) -> nn.Module:
    torch.manual_seed(1)
    return TinyViT(depth=depth)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss: torch.Tensor = (model(IMAGES) - 1).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_losses_are_those_of_patching_anew_at_every_step() -> None:
    model, other = network(), network()
    anneal = Anneal(model, "entmax15", steps=5)
    optimizer, others = optimizer_of(model), optimizer_of(other)
    for step in range(7):
        alpha = min(1 + step / 10, 1.5)
        attn_plugins.patch(other, "softmax" if alpha == 1 else f"entmax:alpha={alpha}")
        assert anneal.alphas == pytest.approx([alpha] * 2)
        assert train(model, optimizer) == pytest.approx(train(other, others), rel=1e-5)
        anneal.step()
    assert anneal.finished
    anneal.finish()
    assert spec_of(model) == "entmax15"
    torch.testing.assert_close(model(IMAGES), attn_plugins.patch(other, "entmax15")(IMAGES))


def test_at_the_start_it_is_softmax_bit_for_bit() -> None:
    model, plain = network(), network()
    Anneal(model, "sparsemax", steps=5)
    assert torch.equal(model(IMAGES), plain(IMAGES))


def test_a_run_that_stops_half_way_says_so_and_goes_on(tmp_path: Path) -> None:
    whole, losses = network(), []
    anneal, optimizer = Anneal(whole, "entmax15", steps=6, order="deep_first"), optimizer_of(whole)
    for step in range(6):
        losses.append(train(whole, optimizer))
        anneal.step()
        if step == 2:
            save(tmp_path / "half.pth", whole)
            held = copy.deepcopy(optimizer.state_dict())
            alphas = anneal.alphas
    assert alphas == pytest.approx([1.0, 1.5])
    again = network()
    resumed = Anneal(again, "entmax15", steps=6, order="deep_first")
    again.load_state_dict(torch.load(tmp_path / "half.pth")["model"])
    assert (resumed.steps, resumed.alphas) == (3, alphas)
    optimizer = optimizer_of(again)
    optimizer.load_state_dict(held)
    for expected in losses[3:]:
        assert train(again, optimizer) == expected
        resumed.step()
    # Without any Anneal: the file is evaluated with the alpha that it stopped at.
    bare = attn_plugins.patch(network(), "entmax_anneal:alpha=1.5,order=deep_first,steps=6")
    bare.load_state_dict(torch.load(tmp_path / "half.pth")["model"])
    assert Anneal(bare).alphas == alphas


def test_weights_of_a_schedule_are_refused_by_another_spec() -> None:
    model = network()
    Anneal(model, "entmax15", steps=5)
    with pytest.raises(ValueError, match=r"entmax_anneal:alpha=1.5,steps=5"):
        attn_plugins.patch(network(), "entmax15").load_state_dict(model.state_dict())


def test_student_and_teacher_go_together_and_mechanisms_stay() -> None:
    timm = pytest.importorskip("timm", reason="pip install timm")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    student, teacher = (timm.create_model("vit_tiny_patch16_224", **sizes) for _ in range(2))
    anneal = Anneal([student, teacher], "entmax:alpha=1.3+registers:num=2", steps=2)
    anneal.step()
    assert anneal.alphas == pytest.approx([1.15] * 4)
    anneal.step()
    anneal.finish()
    assert spec_of(teacher) == "entmax:alpha=1.3+registers:num=2"
    assert student.attn_plugins_registers is not None


@pytest.mark.parametrize(
    ("target", "half_way"),
    [
        ("entmax15@1-2", [1.25, 1.25]),
        ("softmax@0+sparsemax@1-2", [1.5, 1.5]),
        ("entmax:alpha=1.2..1.6", [1.1, 1.2, 1.3]),
        ("entmax15:scale=per_head", [1.25] * 3),
        ("entmax", [1.25] * 3),
    ],
)
def test_layers_values_and_scales_of_the_target(target: str, half_way: list[float]) -> None:
    model = network(depth=3)
    anneal = Anneal(model, target, steps=2)
    anneal.step()
    assert anneal.alphas == pytest.approx(half_way)
    assert model(IMAGES).isfinite().all()
    anneal.step()
    anneal.finish()
    assert spec_of(model) == str(parse(target))
    again = attn_plugins.patch(network(depth=3), target)
    torch.testing.assert_close(model(IMAGES), again(IMAGES))


@pytest.mark.parametrize("scale", ["learnable", "per_head", "asentmax"])
def test_what_was_learned_in_front_of_it_stays_when_it_is_finished(scale: str) -> None:
    model = network()
    anneal = Anneal(model, f"entmax15:scale={scale}", steps=1)
    anneal.step()
    with torch.no_grad():
        for site in find_attention(model):
            for tensor in site.module.get_submodule("attn_plugins_normalizer").state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(0.5)
    before = model(IMAGES)
    anneal.finish()
    torch.testing.assert_close(model(IMAGES), before)


@pytest.mark.parametrize("learned", [False, True])
def test_a_calibrated_model_keeps_its_factors_all_the_way(learned: bool) -> None:
    timm = pytest.importorskip("timm", reason="pip install timm")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    attn_plugins.calibrate(model, IMAGES, "entmax15")
    calibrated = model(IMAGES)
    fitted = [layer.log_scale.clone() for layer in model.modules() if isinstance(layer, HeadScale)]
    assert len(fitted) == 2 and min(float(values.abs().max()) for values in fitted) > 0.01
    target = "entmax15:scale=learnable" if learned else "entmax15:scale=per_head"
    anneal = Anneal(model, target, steps=2)
    for _ in range(2):
        held = [layer.log_scale for layer in model.modules() if isinstance(layer, HeadScale)]
        assert all(isinstance(values, nn.Parameter) == learned for values in held)
        torch.testing.assert_close([values.detach() for values in held], fitted)
        anneal.step()
    anneal.finish()
    torch.testing.assert_close(model(IMAGES), calibrated)
    assert spec_of(model) == target
    other = Anneal(model, "sparsemax:scale=per_head", steps=2)  # for which they were not fitted
    assert all(not layer.log_scale.any() for layer in model.modules() if isinstance(layer, HeadScale)), other


def test_a_copy_goes_its_own_way() -> None:
    model = network()
    anneal = Anneal(model, "entmax15", steps=2)
    anneal.step()
    best = copy.deepcopy(model)
    anneal.step()
    assert Anneal(best).alphas == pytest.approx([1.25] * 2) and anneal.alphas == [1.5, 1.5]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("softmax",), {"steps": 5}, "has no alpha to go to"),
        (("entmax_alpha",), {"steps": 5}, "has no alpha to go to"),
        (("entmax15",), {}, "needs steps="),
        (("entmax15",), {"steps": 5, "shape": "square"}, "none of linear, cosine"),
        ((), {}, "has no layer with entmax_anneal"),
        ((), {"steps": 5}, "name the target"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(
    arguments: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    model = network()
    with pytest.raises(ValueError, match=message):
        Anneal(model, *arguments, **options)
    assert spec_of(model) is None


def test_it_is_finished_when_it_is_at_its_end() -> None:
    model = network()
    anneal = Anneal(model, "entmax15", steps=5)
    with pytest.raises(ValueError, match="not at its end yet"):
        anneal.finish()
    by_spec = attn_plugins.patch(network(), "entmax_anneal:steps=1")
    anneal = Anneal(by_spec)
    anneal.step()
    with pytest.raises(ValueError, match="patch them with the target yourself"):
        anneal.finish()


@pytest.mark.slow
def test_a_monitor_shows_alpha_on_its_way(tmp_path: Path) -> None:
    model = network()
    anneal, monitor = Anneal(model, "entmax15", steps=4), attn_plugins.Monitor(model, every=1)
    optimizer, seen = optimizer_of(model), []
    for _ in range(5):
        train(model, optimizer)
        observation = monitor.step()
        assert observation is not None
        seen.append(observation.means()["alpha"])
        anneal.step()
    assert seen == pytest.approx([1, 1.125, 1.25, 1.375, 1.5])
