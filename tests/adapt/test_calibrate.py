"""Calibration, compared with a search by hand and with what the features were."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import timm
import torch
from entmax import entmax15
from torch import Tensor, nn

import attn_plugins
from attn_plugins.adapt.calibrate import calibrate
from attn_plugins.adapt.curves import Curves
from attn_plugins.patching.scales import Scales

OPTIONS: dict[str, Any] = {
    "depth": 3,
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 24,
    "num_heads": 3,
    "num_classes": 0,
}


def vit(fused: bool = True) -> Any:
    """With scores as spread as those of a trained model; of random weights they are all alike."""
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **OPTIONS).eval()
    for depth, block in enumerate(model.blocks):
        block.attn.qkv.weight.data[:48].mul_(5 + 3 * depth)
        block.attn.fused_attn = fused
    return model


def images(count: int = 4, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count + size))


def test_the_factor_of_a_head_is_that_of_a_search_by_hand() -> None:
    model, given = vit(), images()
    x = model.pos_drop(model._pos_embed(model.patch_embed(given)))
    attention, normed = model.blocks[0].attn, model.blocks[0].norm1(x)
    q, k, v = attention.qkv(normed).reshape(4, 65, 3, 3, 8).permute(2, 0, 3, 1, 4)
    q, scores = q[..., ::2, :], (q @ k.mT / math.sqrt(8))[..., ::2, :]
    wanted = scores.softmax(-1) @ v
    logs = torch.linspace(math.log(0.01), math.log(2), 400)
    off = torch.stack([((entmax15(scores * log.exp()) @ v - wanted) ** 2).mean((0, 2, 3)) for log in logs])
    best = logs[off.argmin(0)].exp()
    found = calibrate(model, given).scales
    torch.testing.assert_close(torch.tensor(found.layers[0]), best, rtol=0.1, atol=0)


def test_it_is_nearer_to_softmax_than_as_patched_and_can_be_taken_off() -> None:
    model, given = vit(), images()
    before = model(given)
    found = calibrate(model, given, held_out=images(3))
    (was,), (now,) = found.before, found.after
    assert now.patches > was.patches and now.centred > was.centred and now.zeros < was.zeros
    assert attn_plugins.verify(model, given).ok
    assert "calibrated" in str(found) and "64x64" in str(found)
    assert torch.equal(attn_plugins.unpatch(model)(given), before)


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_a_share_of_zeros_is_reached(sparsity: float) -> None:
    (now,) = calibrate(vit(), images(), sparsity=sparsity).after
    assert now.zeros == pytest.approx(sparsity, abs=0.03)


@pytest.mark.slow
def test_at_many_zeros_it_is_nearer_than_one_factor_for_all_heads() -> None:
    model, sparsity = vit(), 0.8
    calibrate(model, images(), sparsity=sparsity)
    rivals = []
    for factor in torch.logspace(-1.3, 0.7, 20):
        other = attn_plugins.patch(vit(), "entmax15:scale=per_head")
        for name, value in other.state_dict().items():
            if name.endswith("log_scale"):
                value.fill_(factor.log())
        zeros = [line.zeros for line in attn_plugins.verify(other, images())]
        rivals.append((abs(sum(z or 0 for z in zeros) / len(zeros) - sparsity), other))
    rival = min(rivals, key=lambda pair: pair[0])[1]
    plain = vit()
    goal = plain.forward_features(images())
    far = [(m.forward_features(images()) - goal).norm().item() for m in (model, rival)]
    assert far[0] < far[1]


def test_the_least_sum_of_errors_at_a_share_of_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    logs = torch.linspace(-2, 0, 5)
    error = torch.rand(1, 3, 5, generator=generator).cumsum(-1) ** 1.5
    zeros = torch.rand(1, 3, 5, generator=generator).cumsum(-1) / 5
    curves = Curves(logs, error, zeros)
    chosen = curves.at_zeros(0.4)
    fine = curves.finer()
    places = [int((fine.logs - log).abs().argmin()) for log in chosen[0]]
    spent = sum(float(fine.zeros[0, h, p]) for h, p in enumerate(places))
    cost = sum(float(fine.error[0, h, p]) for h, p in enumerate(places))
    every = itertools.product(range(len(fine.logs)), repeat=3)
    best = min(
        sum(float(fine.error[0, h, p]) for h, p in enumerate(ps))
        for ps in every
        if sum(float(fine.zeros[0, h, p]) for h, p in enumerate(ps)) >= spent
    )
    assert cost == pytest.approx(best, abs=1e-5)
    assert spent / 3 == pytest.approx(0.4, abs=0.05)


@pytest.mark.slow
def test_several_sizes_are_fitted_together_and_told_apart() -> None:
    small, large = images(), images(2, 96)
    found = calibrate(vit(), [small, large])
    assert [line.size for line in found.after] == ["64x64", "96x96"]
    apart = [calibrate(vit(), one).scales.layers for one in (small, large)]
    assert found.scales.layers not in apart
    assert found.scales.fitted["sizes"] == ["64x64", "96x96"]


def test_the_trade_off_has_more_zeros_for_less_likeness() -> None:
    done: list[tuple[int, int]] = []
    found = calibrate(vit(), images(), curve=True, progress=lambda *told: done.append(told))
    zeros = [line.zeros for line in found.curve]
    assert len(zeros) >= 4 and zeros == sorted(zeros)
    assert found.curve[0].centred > found.curve[-1].centred
    assert done[-1] == (3 + len(zeros),) * 2 and [d for d, _ in done] == sorted(d for d, _ in done)


def test_a_layer_that_takes_its_softmax_itself_is_fitted_by_its_weights() -> None:
    fused, materialised = (calibrate(vit(how), images()) for how in (True, False))
    a, b = (torch.tensor(found.scales.layers) for found in (fused, materialised))
    assert (a / b).log().abs().median() < 0.7  # about the same: by its output, and by its weights
    assert materialised.after[0].centred > materialised.before[0].centred


@pytest.mark.parametrize("spec", ["sparsemax", "entmax:alpha=1.3", "entmax15+registers:num=2"])
def test_any_normalizer_and_mechanisms_that_are_there(spec: str) -> None:
    model = vit()
    mechanisms = attn_plugins.parse(spec).mechanisms
    if mechanisms:
        attn_plugins.patch(model, "+".join(map(str, mechanisms)))
    found = calibrate(model, images(), spec)
    assert found.after[0].centred > found.before[0].centred
    assert "scale=per_head" in found.scales.spec


def test_softmax_is_its_own_calibration() -> None:
    found = calibrate(vit(), images(), "softmax")
    assert torch.tensor(found.scales.layers).log().abs().max() < 0.3
    assert found.after[0].centred > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 1.2}, "sparsity=1.2 is no share of zeros"),
        ({"sparsity": 0.9999}, "factors from 0.01 to 8.0 give"),
        ({"spec": "entmax15@1"}, "says something for each layer"),
        ({"spec": "entmax15:scale=0.3"}, "has a scale already, which is what calibrate finds"),
        ({"images": []}, "calibrate needs images"),
        ({"images": torch.zeros(3, 64, 64)}, r"floating-point tensors \[B, 3, H, W\]"),
        ({"images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "floating-point tensors"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_and_nothing_changes(change: dict[str, Any], message: str) -> None:
    model = vit()
    with pytest.raises(ValueError, match=message):
        calibrate(model, **{"images": images(), **change})
    assert all(line.spec is None for line in attn_plugins.describe(model))


def test_a_sparse_model_is_not_calibrated_again() -> None:
    model: nn.Module = attn_plugins.patch(vit(), "entmax15")
    with pytest.raises(ValueError, match="calibrate starts from softmax: unpatch it first"):
        calibrate(model, images())


def test_the_factors_go_through_a_file(tmp_path: Any) -> None:
    model = vit()
    found = calibrate(model, images(), sparsity=0.7)
    found.scales.write(tmp_path / "scales.json")
    again = attn_plugins.patch(vit(), "entmax15", scales=tmp_path / "scales.json")
    torch.testing.assert_close(again(images()), model(images()), rtol=1e-3, atol=1e-3)
    assert Scales.read(tmp_path / "scales.json").fitted["sparsity"] == 0.7
