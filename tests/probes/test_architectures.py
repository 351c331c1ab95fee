"""The official architectures built by timm equal the official code, at the training resolution and at others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attn_plugins.checkpoints import CheckpointError, save
from attn_plugins.checkpoints import build as load_backbone
from attn_plugins.checkpoints.architectures import construct
from attn_plugins.codebases.features import ViTFeatures

from .conftest import ARCH, OPTIONS, checkout, tiny_vit
from .test_features import images, randomised

SIZES = [(224, 224), (448, 224), (320, 480)]


def features(model: nn.Module, patch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    read = ViTFeatures(model)
    found = []
    with torch.no_grad():
        for height, width in SIZES:
            x = images(height // patch * patch, width // patch * patch)[:1]
            found += read(x, (0, read.depth - 1), True)
    return found


def assert_same(a: nn.Module, b: nn.Module, patch: int) -> None:
    for (patches, cls), (their_patches, their_cls) in zip(features(a, patch), features(b, patch), strict=True):
        torch.testing.assert_close(patches, their_patches, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(cls, their_cls, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [pytest.param("softmax", marks=pytest.mark.nightly), "entmax15"])
def test_dinov1_small(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = checkout("DINO_ROOT")
    monkeypatch.delenv("DINO_ROOT")
    official = randomised(construct("dinov1/vit_small", None, root, {"patch_size": 16})[0])
    torch.save({"teacher": {f"module.backbone.{k}": v for k, v in official.state_dict().items()}}, tmp_path / "c.pth")
    ours, identity = load_backbone(checkpoint=tmp_path / "c.pth", plugins=spec)
    theirs, _ = load_backbone(checkpoint=tmp_path / "c.pth", plugins=spec, repo=root)
    assert identity["arch"] == "dinov1/vit_small"
    assert type(ours).__module__ != type(theirs).__module__
    assert_same(ours, theirs, 16)


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_small(registers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = checkout("DINOV2_ROOT")
    monkeypatch.delenv("DINOV2_ROOT")
    options = {"patch_size": 14, "img_size": 518, "num_register_tokens": registers}
    official = randomised(construct("dinov2/vit_small", None, root, options)[0])
    torch.save(official.state_dict(), tmp_path / "c.pth")
    ours, identity = load_backbone(checkpoint=tmp_path / "c.pth", plugins="entmax15")
    theirs, _ = load_backbone(checkpoint=tmp_path / "c.pth", plugins="entmax15", repo=root)
    assert identity["arch"] == "dinov2/vit_small"
    assert_same(ours, theirs, 14)


@pytest.mark.slow
def test_dinov3_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = checkout("DINOV3_ROOT")
    monkeypatch.delenv("DINOV3_ROOT")
    official: Any = construct("dinov3/vit_small", None, root, {})[0]
    official.init_weights()
    torch.save(randomised(official).state_dict(), tmp_path / "c.pth")
    ours, identity = load_backbone(checkpoint=tmp_path / "c.pth", plugins="entmax15")
    theirs, _ = load_backbone(checkpoint=tmp_path / "c.pth", plugins="entmax15", repo=root)
    assert identity["arch"] == "dinov3/vit_small"
    assert_same(ours, theirs, 16)


def test_the_spec_comes_with_the_file(backbone_file: Path) -> None:
    model, identity = load_backbone(checkpoint=backbone_file)
    x = images(64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), tiny_vit("entmax15")(x))
    assert identity["plugins"] == "entmax15" and identity["arch"] == ARCH
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(CheckpointError, match="softmax"):
        load_backbone(checkpoint=backbone_file, plugins="softmax")


def test_another_architecture_is_refused_with_its_keys(backbone_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)does not fit arch='timm/vit_tiny_patch16_224'.*blocks\.4\.attn"):
        load_backbone(arch="timm/vit_tiny_patch16_224", checkpoint=backbone_file, depth=5)


def test_a_transformers_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(image_size=28, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    saved = transformers.Dinov2Model(config).eval()
    saved.save_pretrained(tmp_path)
    model, identity = load_backbone(f"transformers/{tmp_path}")
    x = images(28, 42)
    with torch.no_grad():
        torch.testing.assert_close(model(x).last_hidden_state, saved(x).last_hidden_state)
    assert identity["sha256"] is None


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("auto", "none was given"),
        ("resnet/50", "unknown architecture 'resnet/50'"),
        ("dinov1/vit_enormous", "set repo= or DINO_ROOT"),
        ("transformers/nowhere", "no such folder"),
    ],
)
def test_what_cannot_be_built(arch: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DINO_ROOT", raising=False)
    with pytest.raises(ValueError, match=message):
        load_backbone(arch)


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkout of dinov2"):
        load_backbone("dinov2/vit_small", repo=tmp_path)


def test_unnamed_shapes_have_to_be_named(tmp_path: Path) -> None:
    save(tmp_path / "c.pth", tiny_vit())
    with pytest.raises(ValueError, match="has no common name"):
        load_backbone(checkpoint=tmp_path / "c.pth")
    model: Any = load_backbone(ARCH, tmp_path / "c.pth", depth=OPTIONS["depth"])[0]
    assert model.pos_embed.shape[1] == 17
