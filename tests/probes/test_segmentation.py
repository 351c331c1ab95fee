"""Windows of a picture pass through the backbone together, and give what mmseg's one by one give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor, nn

from attn_plugins.probes import LinearProbe, config_file


@pytest.fixture(scope="module")
def probe() -> LinearProbe:
    init_default_scope("mmseg")
    config = Config.fromfile(config_file("voc2012"))
    config.model.backbone.update(arch="timm/test_vit", random_init=True, plugins="entmax15", out_indices=[-2, -1])
    config.model.test_cfg.update(crop_size=(64, 80), stride=(40, 48))
    torch.manual_seed(0)
    model: LinearProbe = MODELS.build(config.model).eval()
    nn.init.normal_(model.decode_head.conv_seg.weight)
    return model


def passes(model: LinearProbe, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows every pass through the backbone has, as they come."""
    counted: list[int] = []
    forward = model.backbone.forward

    def count(images: Tensor) -> Any:
        counted.append(len(images))
        return forward(images)

    monkeypatch.setattr(model.backbone, "forward", count)
    return counted


@pytest.mark.parametrize("size", [(64, 80), (48, 200), (150, 96), (131, 179), (30, 50)])
@pytest.mark.parametrize("images", [1, 2])
def test_windows_together_give_what_mmseg_gives_one_by_one(
    probe: LinearProbe, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], images: int
) -> None:
    inputs = torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(1))
    metas = [{"ori_shape": size, "img_shape": size, "pad_shape": (*size, 3)} for _ in range(images)]
    with torch.no_grad():
        expected = EncoderDecoder.slide_inference(probe, inputs, [dict(meta) for meta in metas])
        counted = passes(probe, monkeypatch)
        found = probe.slide_inference(inputs, metas)
    assert len(counted) == 1 and counted[0] % images == 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert metas[0]["img_shape"] == size


def test_as_many_pass_at_once_as_the_config_says(probe: LinearProbe, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(1, 3, 131, 179, generator=torch.Generator().manual_seed(1))
    counted = passes(probe, monkeypatch)
    with torch.no_grad():
        whole = probe.slide_inference(inputs, [{"pad_shape": (131, 179)}])
        monkeypatch.setitem(probe.test_cfg, "windows", 4)
        parts = probe.slide_inference(inputs, [{"pad_shape": (131, 179)}])
    assert counted == [12, 4, 4, 4]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
