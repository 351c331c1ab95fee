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
from attn_plugins.demo.sparse_picture import FOOT, HEAD, LABELS, ZERO, attention_colours, look

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
    assert softmax["cosine"] == 1 and softmax["zeros"] == 0 and softmax["kept"] == softmax["miou"]
    assert patched["kept"] != patched["miou"]
    assert patched["zeros"] > 0.1 and calibrated["cosine"] > patched["cosine"]
    assert adapted["cosine"] != calibrated["cosine"] and told["adapted"]["steps"] == 2
    assert 0 < told["chance"]["miou"] < 20
    assert len(list((out / "scenes").glob("*.png"))) == 4
    text = "\n".join(printed)
    assert "verified: 4 of 4 layers compute entmax15:scale=per_head" in text and "(chance)" in text
    pixels = np.asarray(Image.open(out / "picture.png").convert("RGB"))
    assert pixels.shape[1] == LABELS + 3 * (3 * 155 + 5), "three columns a scene"
    assert pixels.shape[0] == 120 + HEAD + 4 * 125 + FOOT, "a row a model, under the scenes"
    for model, there in ((0, False), (1, True)):
        row = pixels[120 + HEAD + model * 125 :][:120]
        assert bool((row == ZERO).all(-1).any()) == there
    again = backbone.show_backbone(checkpoint(tmp_path, "softmax"), out, amount=TINY)
    assert [asdict(row) for row in again] == told["rows"], "a second run gives the same"
    with pytest.raises(ValueError, match="choose another --out"):
        backbone.show_backbone(checkpoint(tmp_path, "softmax"), out, amount=replace(TINY, seen=5))


@pytest.mark.slow
def test_the_weights_that_come_with_the_package_have_learned_to_see(tmp_path: Path) -> None:
    files = [file for file in backbone.WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 6e6 and len(files) == 4
    amount = backbone.Amount(train=150, val=100, fit=8, seen=8, adapt=Recipe(steps=1, batch=2, sparsity=0.9))
    rows = backbone.show_shipped(tmp_path / "out", lambda line: None, amount)
    softmax, patched, calibrated, adapted, trained = rows
    assert [row.spec for row in rows[:2]] == ["softmax", "entmax15"] and trained.spec == "entmax15"
    assert softmax.kept and patched.kept and calibrated.kept
    assert trained.kept is None and trained.cosine is None
    told = json.loads((tmp_path / "out/table.json").read_text())
    assert min(row.miou.low for row in rows) > told["chance"]["high"]
    assert patched.kept.miou < calibrated.kept.low and patched.kept.high < softmax.kept.miou
    assert patched.zeros > 0.8 and trained.zeros > 0.5 and adapted.zeros > 0.8


def test_the_command_takes_one_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(backbone, "show_backbone", lambda *args: asked.append(args))
    monkeypatch.setattr(backbone, "show_shipped", lambda *args: asked.append(args))
    monkeypatch.setattr(official, "download", lambda name: Path("hub") / f"{name}.pth")
    out, one = str(tmp_path / "out"), ["--checkpoint", "x.pth"]
    assert main(["demo", "--out", out, *one, "--arch", "dinov2/vit_small"]) == 0
    assert main(["demo", "--out", out, "--weights", "dinov2_vits14"]) == 0
    places = [(Path("x.pth"), "dinov2/vit_small"), (Path("hub") / "dinov2_vits14.pth", "auto")]
    assert main(["demo"]) == 0 and main(["demo", *one]) == 0
    expected = [*((path, Path(out), arch, None) for path, arch in places), (Path("demo_out/shipped"),)]
    assert asked == [*expected, (Path("x.pth"), Path("demo_out/x"), "auto", None)], "each has a folder of its own"
    for wrong, told in (
        ([*one, "--steps", "0"], "--steps belongs to --pretrain"),
        (["--quick"], "--quick belongs to --pretrain"),
        (["--arch", "timm/vit_tiny_patch16_224"], "belong to --checkpoint"),
    ):
        assert main(["demo", "--out", out, *wrong]) == 2
        assert told in capsys.readouterr().err
    assert len(asked) == 4


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
