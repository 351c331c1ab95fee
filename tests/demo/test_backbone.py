"""A softmax backbone made sparse by the demo: what is told is what the models are, and the picture shows it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("timm", reason="builds a timm model: pip install timm")
pytest.importorskip("matplotlib", reason="pip install 'attn_plugins[analysis]'")

import timm

import attn_plugins
from attn_plugins.adapt import Recipe
from attn_plugins.checkpoints import save
from attn_plugins.cli import main
from attn_plugins.demo import backbone, official
from attn_plugins.demo.sparse_picture import ZERO, attention_colours, look

OPTIONS: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 4,
    "num_heads": 2,
    "dynamic_img_size": True,
}


def checkpoint(folder: Path, spec: str) -> Path:
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, **OPTIONS)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(30)  # so that entmax has zeros to give
    attn_plugins.patch(model, spec)
    return save(folder / "model.pth", model, arch="timm/vit_tiny_patch16_224", arch_options=OPTIONS)


TINY = backbone.Amount(train=6, val=3, fit=4, seen=4, adapt=Recipe(steps=2, batch=2))


@pytest.mark.slow
def test_the_same_weights_four_times(tmp_path: Path) -> None:
    out, printed = tmp_path / "out", list[str]()
    backbone.show_backbone(checkpoint(tmp_path, "softmax"), out, say=printed.append, amount=TINY)
    told = json.loads((out / "table.json").read_text())
    softmax, patched, calibrated, adapted = told["rows"]
    fitted = "entmax15:scale=per_head"
    assert [row["spec"] for row in told["rows"]] == ["softmax", "entmax15", fitted, fitted]
    assert softmax["cosine"] == 1 and softmax["zeros"] == 0
    assert patched["zeros"] > 0.1 and calibrated["cosine"] > patched["cosine"]
    assert adapted["cosine"] != calibrated["cosine"] and told["adapted"]["steps"] == 2
    assert 0 < told["chance"]["miou"] < 20
    assert len(list((out / "scenes").glob("*.png"))) == 4
    text = "\n".join(printed)
    assert "verified: 4 of 4 layers compute entmax15:scale=per_head" in text and "(chance)" in text
    pixels = np.asarray(Image.open(out / "picture.png").convert("RGB"))
    columns = pixels.shape[1] // 155 + 1
    assert columns == 1 + 4 * 3
    body = pixels[40:-22]
    for model, there in ((0, False), (1, True)):
        column = body[:, (1 + 3 * model) * 155 : (1 + 3 * model) * 155 + 150]
        assert bool((column == ZERO).all(-1).any()) == there
    again = backbone.show_backbone(checkpoint(tmp_path, "softmax"), out, amount=TINY)
    assert [asdict(row) for row in again] == told["rows"], "a second run gives the same"
    with pytest.raises(ValueError, match="choose another --out"):
        backbone.show_backbone(checkpoint(tmp_path, "softmax"), out, amount=replace(TINY, seen=5))


def test_the_command_takes_one_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(backbone, "show_backbone", lambda *args: asked.append(args))
    monkeypatch.setattr(official, "download", lambda name: Path("hub") / f"{name}.pth")
    out, one = str(tmp_path / "out"), ["--checkpoint", "x.pth"]
    assert main(["demo", "--out", out, *one, "--arch", "dinov2/vit_small"]) == 0
    assert main(["demo", "--out", out, "--weights", "dinov2_vits14"]) == 0
    places = [(Path("x.pth"), "dinov2/vit_small"), (Path("hub") / "dinov2_vits14.pth", "auto")]
    assert asked == [(path, Path(out), arch, None) for path, arch in places]
    for wrong, told in (
        ([*one, "--steps", "0"], "--steps belongs to the pre-training"),
        ([*one, "--quick"], "--quick belongs to the pre-training"),
        (["--arch", "timm/vit_tiny_patch16_224"], "belong to --checkpoint"),
    ):
        assert main(["demo", "--out", out, *wrong]) == 2
        assert told in capsys.readouterr().err
    assert len(asked) == 2


def test_a_backbone_of_another_spec_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = checkpoint(tmp_path, "entmax15"), tmp_path / "out"
    assert main(["demo", "--checkpoint", str(path), "--out", str(out)]) == 2
    assert "was trained with 'entmax15'" in capsys.readouterr().err
    assert not out.exists()


def test_what_a_patch_looks_at_is_its_row_of_the_last_layer() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, **OPTIONS).eval()
    attn_plugins.patch(model, "entmax15")
    images = torch.randn(2, 3, 32, 48)
    seen = look(model, images, [(1, 2), (3, 5)])
    taken: dict[str, Tensor] = {}
    qkv = model.blocks[-1].attn.qkv.register_forward_hook(lambda module, args, out: taken.update(qkv=out))
    with torch.no_grad():
        model(images)
    qkv.remove()
    q, k, _ = taken["qkv"].reshape(2, 25, 3, 2, 12).permute(2, 0, 3, 1, 4)
    weights = attn_plugins.functional.entmax15(q @ k.mT / 12**0.5)
    for image, query in enumerate((1 * 6 + 2, 3 * 6 + 5)):
        torch.testing.assert_close(seen.attention[image].flatten(), weights[image, :, 1 + query, 1:].mean(0))
    assert seen.similarity.shape == (2, 4, 6) and seen.features.shape == (2, 4, 6, 24)


def test_exact_zeros_have_a_colour_of_their_own() -> None:
    weights = torch.tensor([[0.0, 1e-12, 0.5], [0.25, 0.25, 0.0]])
    zero = (np.asarray(attention_colours(weights)) == ZERO).all(-1)
    assert zero.tolist() == (weights == 0).tolist()
