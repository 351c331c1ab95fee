"""``attn-plugins calibrate``: from a checkpoint and a folder of images to files that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import attn_plugins
from attn_plugins.checkpoints import build, identify, save
from attn_plugins.cli import main

OPTIONS: dict[str, Any] = {"depth": 3, "img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, num_classes=0, **OPTIONS)
    for block in model.blocks:
        block.attn.qkv.weight.data.mul_(5)
    return save(tmp_path / "softmax.pt", model, arch="timm/vit_tiny_patch16_224", arch_options=OPTIONS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(6):
        pixels = generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.mark.slow
def test_it_writes_a_checkpoint_scales_and_a_figure(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scales, figure = (tmp_path / name for name in ("sparse.pt", "scales.json", "trade-off.png"))
    arguments = [str(checkpoint), "--data", str(data), "--sizes", "32", "48", "--sparsity", "0.5"]
    arguments += ["--out", str(out), "--scales-out", str(scales), "--figure", str(figure)]
    assert main(["calibrate", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "as patched" in printed and "calibrated" in printed and "trade-off" in printed and "48x48" in printed
    assert identify(out).spec == "entmax15:scale=per_head"
    built, told = build(checkpoint=out)
    assert told["plugins_source"] == "recorded"
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    softmax, _ = build(checkpoint=checkpoint, plugins="softmax")
    again = attn_plugins.patch(softmax, "entmax15", scales=scales)
    torch.testing.assert_close(again(images), built(images), rtol=1e-3, atol=1e-3)
    with Image.open(figure) as drawn:
        assert drawn.width > drawn.height > 300 and len(np.unique(np.asarray(drawn))) > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write"),
        (["--out", "absent/sparse.pt"], "there is no folder absent"),
        (["--scales-out", "s.json", "--images", "1"], "of which half are measured on"),
        (["--scales-out", "s.json", "--sparsity", "2"], "is no share of zeros"),
        (["--scales-out", "s.json", "--plugins", "entmax17"], "unknown normalizer"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], message: str, checkpoint: Path, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", str(checkpoint), "--data", str(data), "--sizes", "32", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))
