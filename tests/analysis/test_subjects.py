"""What models are called, and when a file's name tells an epoch."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import attn_plugins
from attn_plugins.analysis.subjects import epoch_of, from_checkpoints
from attn_plugins.checkpoints import save

ARCH = "timm/vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 1}


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("checkpoint0080.pth", 80),
        ("checkpoint0000.pth", 0),
        ("epoch_12.pth", 12),
        ("epoch=99-step=5000.ckpt", 99),
        ("vit_small_ep40.pth", 40),
        ("checkpoint.pth", None),
        ("entmax15.pth", None),
        ("registers-num-4.pth", None),
        ("dinov2_vitb14_pretrain.pth", None),
        ("iter_4000.pth", None),
        ("checkpoint-1500.pth", None),
        ("step40.pth", None),
        ("teacher_checkpoint.pth", None),
    ],
)
def test_only_an_epoch_is_an_epoch(name: str, epoch: int | None) -> None:
    assert epoch_of(Path("run_3") / name) == epoch


def test_names_are_as_short_as_tells_the_models_apart(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **OPTIONS)
    paths = [tmp_path / name for name in ("a/checkpoint0010.pth", "a/checkpoint0020.pth", "b/checkpoint0020.pth")]
    paths += [tmp_path / "b" / "checkpoint.pth", tmp_path / "b" / "entmax15.pth"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        attn_plugins.patch(model, "entmax15" if path.stem == "entmax15" else "softmax")
        save(path, model, arch=ARCH, arch_options=OPTIONS)
    found = [(subject.name, subject.epoch) for subject in from_checkpoints(paths)]
    assert found == [
        ("softmax, epoch 10", 10),
        ("softmax, a/checkpoint0020", 20),
        ("softmax, b/checkpoint0020", 20),
        ("softmax, b/checkpoint", None),
        ("entmax15", None),
    ]


def test_one_checkpoint_stands_beside_itself_under_two_specs(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **OPTIONS)
    trained = save(tmp_path / "trained.pth", attn_plugins.patch(model, "entmax15"), arch=ARCH, arch_options=OPTIONS)
    silent = tmp_path / "silent.pth"
    torch.save(attn_plugins.unpatch(model).state_dict(), silent)
    with pytest.warns(UserWarning, match="softmax is assumed"):
        found = from_checkpoints([trained, f"{trained}=softmax", f"{silent}=sparsemax", str(silent)])
    assert [(subject.name, subject.spec, subject.source) for subject in found] == [
        ("entmax15", "entmax15", "recorded"),
        ("softmax (trained with entmax15)", "softmax", "asked for"),
        ("sparsemax", "sparsemax", "asked for"),
        ("softmax (assumed)", "softmax", "assumed"),
    ]
    for subject in found[:2]:
        assert {line.spec for line in attn_plugins.describe(subject.load())} == {subject.spec}
    with pytest.raises(ValueError, match="bad spec"):
        from_checkpoints([f"{trained}=entmax51"])
