"""A checkpoint of a run that is annealed is what it is: evaluated with the alpha it had, and told by `inspect`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import attn_plugins
from attn_plugins import Anneal
from attn_plugins.checkpoints import load_backbone, save
from attn_plugins.cli import main

timm = pytest.importorskip("timm", reason="builds a timm model: pip install timm")

OPTIONS = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}


@pytest.mark.parametrize("form", ["pth", "safetensors", "half"])
def test_evaluation_and_inspect_know_where_alpha_stood(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **OPTIONS)
    anneal = Anneal(model, "entmax15", steps=8, order="deep_first")
    for _ in range(3):
        anneal.step()
    assert anneal.alphas == pytest.approx([1, 1, 1.25, 1.5])
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pth")
    if form == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
        safetensors.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    elif form == "half":
        state = {name: tensor.half() for name, tensor in model.state_dict().items()}
        torch.save({"model": state}, path)
    else:
        save(path, model, arch="timm/vit_tiny_patch16_224", arch_options=OPTIONS)
    loaded = timm.create_model("vit_tiny_patch16_224", num_classes=0, **OPTIONS)
    attn_plugins.patch(loaded, "entmax_anneal:order=deep_first,steps=8,alpha=1.5")
    load_backbone(loaded, path)
    assert Anneal(loaded).alphas == anneal.alphas
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "entmax_anneal:alpha=1.5,order=deep_first,steps=8" in printed
    assert "alpha         1 to 1.5 after 3 steps" in printed


def test_inspect_tells_no_alpha_of_other_specs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = attn_plugins.patch(timm.create_model("vit_tiny_patch16_224", num_classes=0, **OPTIONS), "entmax15")
    save(tmp_path / "model.pth", model, arch="timm/vit_tiny_patch16_224", arch_options=OPTIONS)
    assert main(["inspect", str(tmp_path / "model.pth")]) == 0
    assert "alpha  " not in capsys.readouterr().out
