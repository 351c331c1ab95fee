"""`attn-plugins export`: a file that another runtime reads and that computes what the model does, or no file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg", reason="the probes need the extra: pip install attn_plugins[probes]")
pytest.importorskip("onnxruntime", reason="needs the extra: pip install attn_plugins[export]")
pytest.importorskip("onnxscript", reason="needs the extra: pip install attn_plugins[export]")

import onnxruntime
import timm
from mmseg.apis import init_model

import attn_plugins
from attn_plugins.checkpoints import build, save
from attn_plugins.checkpoints.architectures import construct
from attn_plugins.cli import main
from attn_plugins.data.layouts import LAYOUTS
from attn_plugins.probes.run.command import data_options, size_options
from attn_plugins.probes.run.runner import build_runner

ARCH = "timm/vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {"img_size": 64, "depth": 1}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(ARCH.removeprefix("timm/"), num_classes=0, dynamic_img_size=True, **OPTIONS)
    torch.nn.init.normal_(model.get_parameter("pos_embed"), std=0.5)
    attn_plugins.patch(model, "entmax15")
    return save(tmp_path_factory.mktemp("backbone") / "vit.pth", model, arch=ARCH, arch_options=OPTIONS)


def trained(probe: str, layout: str, backbone: Path, folder: Path) -> Any:
    """A probe after two steps on rendered scenes."""
    root = LAYOUTS[layout](folder / "data", *((20, 20) if layout == "imagenet" else (4, 2)), seed=0, size=(96, 128))
    options = {
        **data_options(str(root), None, workers=0),
        **size_options(probe, (64, 64) if layout == "imagenet" else (48, 64)),
        "model.backbone.checkpoint": backbone,
        "train_cfg.total_batch_size": 2,
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "default_hooks.checkpoint.interval": 2,
    }
    if layout == "imagenet":
        options["model.num_classes"] = 20
    elif layout == "nyuv2":
        options["model.backbone.out_indices"] = [0, -1]
    runner = build_runner(probe, options, folder / "run")
    runner.train()
    return runner


def told_by(session: Any) -> dict[str, str]:
    return dict(session.get_modelmeta().custom_metadata_map)


@pytest.mark.slow
def test_a_segmentation_probe_is_that_of_mmseg_at_any_size(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = trained("voc2012_linear", "voc2012", backbone, tmp_path)
    bundle, file = tmp_path / "probe.safetensors", tmp_path / "probe.onnx"
    assert main(["predict", runner.work_dir, "--bundle", str(bundle), "--device", "cpu"]) == 0
    assert main(["export", str(bundle), "--onnx", str(file)]) == 0
    assert "onnxruntime, 3x3x101x75: logits differs by at most" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(file)
    model = init_model(runner.cfg, str(Path(runner.work_dir) / "iter_2.pth"), device="cpu")
    for batch, height, width in ((1, 64, 64), (4, 83, 50)):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, height, width)).astype(np.float32)
        (found,) = session.run(None, {"images": pixels})
        bgr = [torch.from_numpy(image[::-1].copy()) for image in pixels]  # mmseg's own preprocessor reads BGR
        with torch.no_grad():
            inputs = model.data_preprocessor({"inputs": bgr})["inputs"]
            expected = model.encode_decode(inputs, [{"img_shape": (height, width)}])
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
        assert found.std() > 0.01
    told = told_by(session)
    assert told["spec"] == "entmax15" and told["task"] == "segmentation" and told["input"] == "RGB pixels, 0 to 255"
    assert told["parent_digest"] == model.backbone.identity["digest"] and told["sizes"] == "from 32 to 8192 pixels"
    assert json.loads(told["classes"])[15] == "person"
    assert torch.__version__.startswith(json.loads(told["made_with"])["torch"])
    np.testing.assert_allclose(json.loads(told["mean"]), [123.675, 116.28, 103.53])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("probe", "layout", "shape"),
    [("nyuv2_linear4_depth", "nyuv2", (1, 83, 50)), ("imagenet_linear", "imagenet", (20,))],
)
def test_the_other_probes(probe: str, layout: str, shape: tuple[int, ...], backbone: Path, tmp_path: Path) -> None:
    runner = trained(probe, layout, backbone, tmp_path)
    file = tmp_path / "probe.onnx"
    assert main(["export", runner.work_dir, "--onnx", str(file)]) == 0
    session = onnxruntime.InferenceSession(file)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 83, 50, 3)).astype(np.uint8)
    (found,) = session.run(None, {"images": pixels.transpose(0, 3, 1, 2).astype(np.float32)})
    assert found.shape == (3, *shape)
    predictor = attn_plugins.probes.load(runner.work_dir, device="cpu")
    if layout == "nyuv2":
        for image, depth in zip(pixels, found, strict=True):
            np.testing.assert_allclose(depth[0], predictor.predict(image).depth, rtol=1e-4)
    assert told_by(session)["task"] == predictor.record.task


@pytest.mark.nightly
@pytest.mark.parametrize("checkout", [False, True])
@pytest.mark.parametrize("name", ["dinov1/vit_small", "dinov2/vit_small", "dinov3/vit_small"])
def test_official_backbones(name: str, checkout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any size, as the official code computes them and as timm does."""
    variable = f"{name.partition('/')[0].upper().replace('V1', '')}_ROOT"
    if not os.environ.get(variable):
        pytest.skip(f"{variable} does not name a checkout of the official repository")
    torch.manual_seed(0)
    model, _, _ = construct(name, None, None, {} if "v3" in name else {"patch_size": 14} | size_of(name))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    torch.save({"model": model.state_dict()}, tmp_path / "vit.pth")
    if not checkout:
        monkeypatch.delenv(variable)
    file = tmp_path / "vit.onnx"
    command = ["export", str(tmp_path / "vit.pth"), "--plugins", "entmax15", "--onnx", str(file)]
    assert main(command if "v3" not in name else [*command, "--arch", name]) == 0
    session = onnxruntime.InferenceSession(file)
    patches, cls = session.run(None, {"images": np.random.rand(3, 3, 64, 96).astype(np.float32)})
    assert patches.shape[:2] == cls.shape == (3, 384)
    assert told_by(session)["spec"] == "entmax15"


def size_of(name: str) -> dict[str, Any]:
    """DINOv1's constructor takes a list."""
    return {"img_size": [56]} if "v1" in name else {"img_size": 56, "init_values": 1.0, "block_chunks": 0}


@pytest.mark.nightly
def test_a_folder_of_transformers(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=56, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(tmp_path / "folder")
    file = tmp_path / "vit.onnx"
    assert main(["export", str(tmp_path / "folder"), "--plugins", "entmax15", "--onnx", str(file)]) == 0
    session = onnxruntime.InferenceSession(file)
    patches, _ = session.run(None, {"images": np.random.rand(3, 3, 61, 84).astype(np.float32)})
    assert patches.shape == (3, 48, 5, 6) and told_by(session)["spec"] == "entmax15"


@pytest.mark.slow
def test_a_program_of_one_size_and_what_is_refused(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "vit.pt2"
    command = ["export", str(backbone), "--program", str(file), "--size", "48", "70"]
    assert main([*command, "--tolerance", "0"]) == 2
    assert "of its largest value, more than --tolerance 0; nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*command, "--mean", "120", "120", "120", "--std", "60", "60", "60"]) == 0
    extra = {"attn_plugins.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    told = json.loads(extra["attn_plugins.json"])
    assert told["sizes"] == "48x70" and told["input"] == "RGB pixels, 0 to 255" and told["spec"] == "entmax15"
    pixels = torch.randint(0, 256, (5, 3, 48, 70)).float()
    model: Any
    model, _ = build(checkpoint=backbone)
    padded = torch.nn.functional.pad((pixels - 120) / 60, (5, 5))
    with torch.no_grad():
        expected = model.forward_features(padded)
        patches, cls = program(pixels)
    torch.testing.assert_close(cls, expected[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), expected[:, 1:], atol=1e-4, rtol=0)
    before = file.read_bytes()
    assert main(command) == 2 and "--force to replace it" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "nothing to write: give --onnx FILE or --program FILE"),
        (["--onnx", "x.onnx", "--mean", "1", "2", "3"], "--mean and --std go together"),
        (["--onnx", "gone/x.onnx"], "there is no folder gone; make it first"),
        (["--onnx", "x.onnx", "--checkpoint", "y.pth"], "--checkpoint is for a probe, and"),
    ],
)
def test_what_cannot_be_is_named_first(
    more: list[str],
    message: str,
    backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(backbone), *more]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_what_the_exporter_gets_wrong_is_never_given_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch's exporter fixes the size to which positions are resampled with antialiasing."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, image_size=56, patch_size=14, mlp_ratio=2
    )
    Dinov2WithRegistersModel(config).save_pretrained(tmp_path / "folder")
    command = ["export", str(tmp_path / "folder"), "--plugins", "entmax15", "--onnx", str(tmp_path / "vit.onnx")]
    assert main(command) == 2
    assert "images of one size may do: --size" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert main([*command, "--size", "70", "98"]) == 0
