"""Distillation of tiny ViTs: what it learns, what it leaves alone, and that an interruption changes nothing."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_plugins
from attn_plugins.adapt import Distilled, Recipe, distil
from attn_plugins.functional.scale import HeadScale
from attn_plugins.patching import spec_of

from .pictures import folder, images, vit

QUICK: dict[str, Any] = {"batch": 4, "sizes": (32, 48), "warmup": 2, "lr": 1e-3}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return sorted(folder(tmp_path / "pictures").iterdir())


def likeness(model: Any, teacher: Any, given: Tensor) -> float:
    with torch.no_grad():
        found, wanted = model.forward_features(given), teacher.forward_features(given)
    return float(F.cosine_similarity(found, wanted, dim=-1).mean())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_the_loss_goes_down_and_features_come_back_on_pictures_held_out(files: list[Path]) -> None:
    model, teacher, begun = vit(), vit(), []
    found = distil(
        model, files[:6], "sparsemax", steps=60, start="patched",
        begun=lambda now: begun.append(copy.deepcopy(now)), **QUICK,
    )  # fmt: skip
    assert sum(found.losses[-10:]) < 0.8 * sum(found.losses[:10])
    assert spec_of(model) == "sparsemax" == found.spec
    held = torch.stack([_pixels(file) for file in files[6:]])
    assert likeness(model, teacher, held) > likeness(begun[0], teacher, held)
    assert attn_plugins.verify(model, held).ok
    assert "60 steps" in str(found) and not any(p.grad_fn for p in model.parameters())


def _pixels(file: Path) -> Tensor:
    import numpy as np
    from PIL import Image

    from attn_plugins.analysis.images import MEAN, STD

    pixels = torch.from_numpy(np.asarray(Image.open(file).resize((32, 32)), np.float32) / 255)
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)


CASES: dict[str, dict[str, Any]] = {
    "calibrated": {},
    "annealed": {"anneal": "deep_first", "anneal_share": 0.6},
    "scales learned, registers": {"spec": "entmax15:scale=learnable+registers:num=2"},
    "bf16, masked": {"amp": "bf16", "mask": 0.5, "spec": "entmax15", "start": "patched"},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "bf16, masked")) for n in CASES])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(name: str, files: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 8, **QUICK, **CASES[name]}

    def stop(done: int, total: int) -> None:
        if done in (3, 5):
            raise KeyboardInterrupt

    whole, model = vit(), vit()
    expected = distil(whole, files, **options)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distil(vit(), files, folder=tmp_path / "run", snapshot_minutes=0, progress=stop, **options)
    found = distil(model, files, folder=tmp_path / "run", snapshot_minutes=0, **options)
    assert found.resumed == 5 and found.losses == expected.losses
    assert same(state(model), state(whole))


def test_a_folder_takes_one_run(files: list[Path], tmp_path: Path) -> None:
    distil(vit(), files, folder=tmp_path / "run", steps=1, start="patched", **QUICK)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    other: list[tuple[Any, dict[str, Any], str]] = [
        (vit(), {"lr": 2e-3}, r"lr was 0.001 and is 0.002"),
        (vit(1), {}, "weights was"),
        (vit(), {"spec": "sparsemax"}, "spec was 'entmax15' and is 'sparsemax'"),
    ]
    for model, options, message in other:
        before = state(model)
        with pytest.raises(ValueError, match=message):
            distil(model, files, folder=tmp_path / "run", **{"steps": 1, "start": "patched", **QUICK, **options})
        assert same(state(model), before)
    with pytest.raises(ValueError, match="holds no run of adapt"):
        distil(vit(), files, folder=tmp_path / "pictures", steps=1, **QUICK)
    assert kept == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(
    ("train", "moved"),
    [("attention", (".attn.",)), ("qkv+norms", (".attn.qkv.", "norm")), ("all", ("",))],
)
def test_what_does_not_train_is_left_bit_by_bit(train: str, moved: tuple[str, ...], files: list[Path]) -> None:
    model, before = vit(), state(vit())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    distil(model, files, "entmax15:scale=learnable", steps=3, train=train, **QUICK)
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {name for name in before if any(part in name for part in moved)}
    assert changed == wanted
    assert flags == {name: p.requires_grad for name, p in model.named_parameters() if name in flags}


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
def test_lora_is_merged_into_the_projections_of_attention(files: list[Path]) -> None:
    model, before = vit(), state(vit())
    distil(model, files, steps=3, train="lora", **QUICK)
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".attn." in name and name.endswith("weight")}
    change = (after["blocks.0.attn.qkv.weight"] - before["blocks.0.attn.qkv.weight"]).double()
    strengths = torch.linalg.svdvals(change)
    assert strengths[0] > 0 and strengths[8] < 1e-3 * strengths[0]  # of rank 8, but for rounding
    assert attn_plugins.verify(model, images()).ok


@pytest.mark.skipif(importlib.util.find_spec("peft") is not None, reason="peft is installed")
def test_lora_names_the_extra_that_it_needs(files: list[Path]) -> None:
    model = vit()
    with pytest.raises(ValueError, match=r"pip install 'attn_plugins\[lora\]'"):
        distil(model, files, train="lora", steps=1)
    assert spec_of(model) is None


@pytest.mark.slow
def test_learned_factors_move_and_keep_their_mean(files: list[Path]) -> None:
    starts: list[Tensor] = []

    def logs(model: nn.Module) -> Tensor:
        return torch.cat([m.log_scale.detach() for m in model.modules() if isinstance(m, HeadScale)])

    model = vit()
    options: dict[str, Any] = {"steps": 5, "factor": 1.5, "scale_lr": 0.05, **QUICK}
    distil(model, files, "entmax15:scale=learnable", begun=lambda m: starts.append(logs(m).clone()), **options)
    assert (logs(model) - starts[0]).abs().max() > 0.01
    torch.testing.assert_close(logs(model).mean(), starts[0].mean(), rtol=0, atol=1e-5)
    free = vit()
    distil(free, files, "entmax15:scale=learnable", hold=False, **options)
    assert (logs(free).mean() - starts[0].mean()).abs() > 1e-4


def test_a_factor_is_on_top_of_the_calibrated_ones(files: list[Path]) -> None:
    def factors(**options: Any) -> Tensor:
        model = vit()
        distil(model, files, steps=1, **QUICK, **options)
        return torch.stack([m.scale for m in model.modules() if isinstance(m, HeadScale)])

    torch.testing.assert_close(factors(factor=1.9), 1.9 * factors())


def test_an_annealed_run_ends_at_its_target_with_the_calibrated_factors(files: list[Path]) -> None:
    model, begun = vit(), []
    distil(
        model, files, "entmax15", steps=6, anneal="together", begun=lambda m: begun.append(copy.deepcopy(m)), **QUICK
    )
    assert spec_of(model) == "entmax15:scale=per_head" == spec_of(begun[0])
    for name, wanted in begun[0].state_dict().items():
        if name.endswith("log_scale"):
            assert wanted.abs().max() > 0.01
            torch.testing.assert_close(model.state_dict()[name], wanted)


@pytest.mark.parametrize("spec", ["gated", "entmax15+specialization", "softmax+registers:num=2", "entmax15@2-3"])
def test_mechanisms_and_layers_adapt_as_well(spec: str, files: list[Path]) -> None:
    model = vit()
    start = "patched" if "@" in spec else "calibrated"
    found: Distilled = distil(model, files, spec, steps=2, start=start, **QUICK)
    assert all(loss < 100 for loss in found.losses)
    attn_plugins.verify(model, images())
    assert attn_plugins.parse(found.spec).mechanisms == attn_plugins.parse(spec).mechanisms


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3, "minutes": 1.0}, "two budgets"),
        ({"lr": 0.0}, r"lr=0\.0; give a number above 0"),
        ({"start": "begun"}, "one of calibrated, patched"),
        ({"sparsity": 0.8, "start": "patched"}, "sparsity belongs to a calibration"),
        ({"sizes": (30,)}, r"sizes=\[30\] are no multiples of the patch size, 8"),
        ({"layers": (4,)}, "none of the model's, 0 to 3"),
        ({"spec": "entmax15@2-3"}, "say start='patched'"),
        ({"spec": "entmax15:scale=0.5"}, "has a scale of its own"),
        ({"spec": "entmax15:scale=learnable", "anneal": "together"}, "say start='patched'"),
        ({"normed": 0, "cls": 0, "blocks": 0}, "nothing to learn"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    options: dict[str, Any], message: str, files: list[Path]
) -> None:
    model = vit()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        distil(model, files, **options)
    assert same(state(model), before)


def test_minutes_become_steps_and_the_rate_ends_at_nothing(files: list[Path]) -> None:
    found = distil(vit(), files, minutes=0.005, start="patched", **QUICK)
    assert found.recipe.steps == len(found.losses) >= 1
    recipe = Recipe(warmup=10)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert max(rates) == rates[10] == 1 and rates[0] < 0.1 and rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_deeper_blocks_learn_faster_and_vectors_do_not_decay(files: list[Path]) -> None:
    from attn_plugins.adapt.parameters import choose, groups

    model = attn_plugins.patch(vit(), "entmax15:scale=learnable")
    choose(model, "all")
    recipe = Recipe(lr=1.0, layer_decay=0.5, scale_lr=7.0)
    told = {id(p): group for group in groups(model, recipe) for p in group["params"]}
    named = {name: told[id(p)] for name, p in model.named_parameters()}
    assert named["norm.weight"]["lr"] == named["blocks.3.attn.qkv.weight"]["lr"] == 1.0
    assert named["blocks.0.attn.qkv.weight"]["lr"] == 0.125 and named["patch_embed.proj.weight"]["lr"] == 0.0625
    assert named["blocks.3.attn.qkv.weight"]["weight_decay"] == recipe.weight_decay
    assert {named[name]["weight_decay"] for name in named if "norm" in name or "bias" in name or "scale" in name} == {0}
    assert {group["lr"] for name, group in named.items() if name.startswith("blocks.3") and "log_scale" in name} == {7}
