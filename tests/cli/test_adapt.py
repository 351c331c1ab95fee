"""``attn-plugins adapt``: checkpoints of every kind go in, and come out as what they were."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapt.pictures import ARCH, OPTIONS, folder, images, vit
from PIL import Image
from safetensors.torch import load_file, save_file

import attn_plugins
from attn_plugins.checkpoints import build, identify, parent_of, read, save
from attn_plugins.cli import main
from attn_plugins.files import sha256

ROOM = ["--held-out", "3", "--batch", "2", "--steps", "2", "--workers", "0", "--sizes", "32"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return folder(tmp_path / "pictures")


def adapt(checkpoint: Path, data: Path, out: Path, *more: str) -> int:
    return main(["adapt", str(checkpoint), "--data", str(data), "--out", str(out), *ROOM, *more])


@pytest.mark.slow
def test_it_writes_a_checkpoint_and_a_report(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save(tmp_path / "softmax.pt", vit(), arch=ARCH, arch_options=OPTIONS)
    out = tmp_path / "sparse.pt"
    assert adapt(checkpoint, data, out, "--lr", "1e-3") == 0
    printed = capsys.readouterr().out
    assert "patched only" in printed and "calibrated" in printed and "adapted" in printed and "2 steps" in printed
    assert identify(out).spec == "entmax15:scale=per_head"
    model, told = build(checkpoint=out)
    assert told["plugins_source"] == "recorded" and attn_plugins.verify(model, images()).ok
    parent = parent_of(out)
    assert parent is not None and parent["sha256"] == sha256(checkpoint)
    assert main(["inspect", str(out)]) == 0
    assert f"softmax.pt (sha256 {sha256(checkpoint)}" in capsys.readouterr().out
    report = json.loads((tmp_path / "sparse.pt.json").read_text())
    assert [len(one["patches"]) for one in report["measured"]] == [4, 4, 4]
    assert report["held_out"] == 3 and len(report["losses"]) == 2 and report["seconds"] > 0
    with Image.open(tmp_path / "sparse.pt.png") as drawn:
        assert drawn.width > 800 and len(np.unique(np.asarray(drawn))) > 100
    assert not (tmp_path / "sparse.pt.run").exists()
    assert adapt(checkpoint, data, out) == 2
    assert "is there already" in capsys.readouterr().err


def flat(tmp_path: Path) -> Path:
    torch.save(vit().state_dict(), tmp_path / "flat.pth")
    return tmp_path / "flat.pth"


def chunked(tmp_path: Path) -> Path:
    """As DINOv2's trainer names blocks in chunks of two."""

    def name_in_chunk(name: str) -> str:
        return re.sub(r"^blocks\.(\d)", lambda match: f"blocks.{int(match[1]) // 2}.{match[1]}", name)

    torch.save({name_in_chunk(name): tensor for name, tensor in vit().state_dict().items()}, tmp_path / "chunked.pth")
    return tmp_path / "chunked.pth"


def nested(tmp_path: Path) -> Path:
    inner = {f"backbone.{name}": t for name, t in vit().state_dict().items()}
    torch.save({"teacher": inner | {"dino_head.last.weight": torch.ones(3, 3)}}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def safetensors(tmp_path: Path) -> Path:
    save_file(vit().state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def timm_folder(tmp_path: Path) -> Path:
    path = tmp_path / "timm"
    path.mkdir()
    save_file(vit().state_dict(), path / "model.safetensors")
    options = {**OPTIONS, "dynamic_img_size": True, "num_classes": 0}
    (path / "config.json").write_text(json.dumps({"architecture": ARCH.removeprefix("timm/"), "model_args": options}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("made", [flat, chunked, nested, safetensors, timm_folder])
def test_a_checkpoint_keeps_its_format(made: Any, data: Path, tmp_path: Path) -> None:
    checkpoint = made(tmp_path)
    out = tmp_path / f"out{checkpoint.suffix}"
    arch = [] if checkpoint.is_dir() else ["--arch", ARCH_OF_FILES]
    assert adapt(checkpoint, data, out, "--start", "patched", *arch) == 0
    before, after = read(checkpoint), read(out)
    if made is nested:
        before, after = before["teacher"], after["teacher"]
        before.pop("dino_head.last.weight")
    added = {name for name in after if "attn_plugins" in name}
    assert set(before) == set(after) - added and added
    if made is chunked:
        assert "blocks.1.3.attn.attn_plugins_record" in after
    info = identify(out)
    assert info.spec == "entmax15" and (info.section, info.prefix) == (identify(checkpoint).section, info.prefix)
    parent = parent_of(out)
    assert parent is not None and parent["checkpoint"] == checkpoint.name and len(parent["digest"]) == 64


ARCH_OF_FILES = "timm/tiny_of_adapts_tests"


@pytest.fixture(autouse=True)
def _tiny() -> Any:
    """A name of timm's for the tiny ViT, which its files do not tell."""
    import timm
    from timm.models import _registry as registry

    def tiny_of_adapts_tests(pretrained: bool = False, **options: Any) -> Any:
        return timm.create_model("vit_tiny_patch16_224", **{**OPTIONS, "dynamic_img_size": True, **options})

    name = tiny_of_adapts_tests.__name__
    registry._model_entrypoints[name] = tiny_of_adapts_tests
    yield
    del registry._model_entrypoints[name]


@pytest.mark.slow
def test_a_folder_of_transformers_stays_one(data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 48}
    config = transformers.Dinov2Config(image_size=32, patch_size=8, **sizes)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "hf")
    assert adapt(tmp_path / "hf", data, tmp_path / "sparse") == 0
    model = attn_plugins.from_pretrained(tmp_path / "sparse")
    assert attn_plugins.verify(model, images()).ok
    held = load_file(tmp_path / "sparse" / "model.safetensors")
    assert any(name.endswith("log_scale") for name in held)
    parent = parent_of(tmp_path / "sparse")
    assert parent is not None and parent["checkpoint"] == "hf"
    assert identify(tmp_path / "sparse").spec == "entmax15:scale=per_head"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--held-out", "10"], "of 10 pictures"),
        (["--plugins", "entmax17"], "unknown normalizer"),
        (["--steps", "2", "--minutes", "1"], "two budgets"),
        (["--layers", "7"], "none of the model's"),
        (["--out", "absent/x.pt"], "there is no folder"),
        (["--out", "x.safetensors"], "without .safetensors"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    checkpoint = save(tmp_path / "softmax.pt", vit(), arch=ARCH, arch_options=OPTIONS)
    assert adapt(checkpoint, data, Path("out.pt"), *arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "softmax.pt"]
