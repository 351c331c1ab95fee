"""`--finetune`: the backbone trained too, by layers; the spec kept; the result told apart; prediction from one file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.runner import CheckpointLoader, Runner
from mmseg.apis import inference_model, init_model
from timm.optim import param_groups_layer_decay

import attn_plugins
from attn_plugins.checkpoints import CheckpointError, build, save
from attn_plugins.cli import main
from attn_plugins.probes import FrozenViT, TunedViT, load, make_finetune
from attn_plugins.probes.run.paths import config_file
from attn_plugins.probes.run.runner import build_runner
from attn_plugins.results import collect, read_result, render

from .conftest import ARCH, OPTIONS
from .running import options


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT with registers and a learned alpha, whose parameters are told by no layer's name."""
    torch.manual_seed(0)
    model = timm.create_model(ARCH.removeprefix("timm/"), num_classes=0, dynamic_img_size=True, **OPTIONS)
    attn_plugins.patch(model, "entmax_alpha+registers:num=2")
    return save(tmp_path_factory.mktemp("parent") / "vit.pth", model, arch=ARCH, arch_options=OPTIONS)


def tuned(probe: str, parent: Path, roots: dict[str, Path], folder: Path, total: int = 2, **more: Any) -> Runner:
    settings = options(probe, parent, roots, 2, total, **more)
    runner = build_runner(probe, settings, folder, change=at_once)
    runner.train()
    return runner


def at_once(config: Config) -> None:
    """Without the warm-up, whose first steps are below a float's digits."""
    make_finetune(config, 0.5)
    config.param_scheduler = []


@pytest.fixture(scope="module")
def trained(parent: Path, roots: dict[str, Path], tmp_path_factory: Any) -> Runner:
    return tuned("voc2012_linear", parent, roots, tmp_path_factory.mktemp("tuned"))


@pytest.mark.slow
def test_every_part_that_a_feature_depends_on_has_moved(trained: Runner, parent: Path) -> None:
    before = dict(build(checkpoint=parent)[0].named_parameters())
    now = dict(trained.model.backbone.vit.named_parameters())
    assert before.keys() == now.keys()
    kept = {name for name in before if torch.equal(before[name], now[name])}
    assert kept == {name for name, parameter in now.items() if not parameter.requires_grad}
    assert (
        not kept - {"norm.bias"} and any("registers" in name for name in now) and any("logit" in name for name in now)
    )


@pytest.mark.slow
def test_layers_have_the_learning_rates_of_timms_own_decay(trained: Runner) -> None:
    """timm counts the layers of its models itself, the final norm with the last block, where BEiT has it above."""
    vit = trained.model.backbone.vit
    groups = trained.optim_wrapper.optimizer.param_groups
    rate = {id(p): group["lr"] / 1e-4 for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    alpha = {id(p) for name, p in vit.named_parameters() if "logit" in name}
    counted = 0
    for group in param_groups_layer_decay(vit, 0.05, vit.no_weight_decay(), layer_decay=0.5):
        for parameter in group["params"]:
            below = 1 if any(parameter is p for p in vit.norm.parameters()) else 0.5
            assert rate[id(parameter)] == pytest.approx(group["lr_scale"] * below)
            # timm decays whatever is no vector, alpha too.
            assert decay[id(parameter)] == (0 if id(parameter) in alpha else group["weight_decay"])
            counted += 1
    assert counted == sum(p.requires_grad for p in vit.parameters())
    head = list(trained.model.decode_head.parameters())
    assert [rate[id(p)] for p in head] == pytest.approx([10] * len(head)) and len(rate) == counted + len(head)
    registers = [p for name, p in vit.named_parameters() if "register" in name]
    assert alpha and registers and not any(decay[id(p)] for p in registers)


def test_it_predicts_from_its_own_file_alone(
    trained: Runner, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    head = Path(trained.work_dir) / "iter_2.pth"
    model = init_model(copy.deepcopy(trained.cfg), str(head), device="cpu")
    expected = inference_model(model, image[..., ::-1].copy()).pred_sem_seg.data[0].numpy()
    hidden = parent.rename(parent.with_name("hidden"))
    try:
        probe = load(trained.work_dir, device="cpu")
        bundle = tmp_path / "probe.safetensors"
        assert main(["predict", trained.work_dir, "--bundle", str(bundle), "--device", "cpu"]) == 0
        assert "spec entmax_alpha+registers:num=2, fine-tuned" in capsys.readouterr().err
        bundled = load(bundle, device="cpu")
    finally:
        hidden.rename(parent)
    for found in (probe, bundled):
        np.testing.assert_array_equal(found.predict(image).mask, expected)
        assert isinstance(found.model.backbone, FrozenViT) and not isinstance(found.model.backbone, TunedViT)
        for name, tensor in model.backbone.vit.state_dict().items():
            torch.testing.assert_close(found.model.backbone.model.state_dict()[name], tensor, rtol=0, atol=0)
    identity = probe.model.backbone.identity
    assert identity["plugins"] == "entmax_alpha+registers:num=2" and identity["plugins_source"] == "asked for"
    assert identity["digest"] != build(checkpoint=parent)[1]["digest"]
    with pytest.raises(ValueError, match="holds its own backbone"):
        load(trained.work_dir, checkpoint=parent)


def test_the_file_says_the_spec_and_refuses_another(trained: Runner, tmp_path: Path) -> None:
    bundle = tmp_path / "probe.safetensors"
    assert main(["predict", trained.work_dir, "--bundle", str(bundle), "--device", "cpu"]) == 0
    assert attn_plugins.checkpoints.identify(bundle).spec == "entmax_alpha+registers:num=2"
    with pytest.raises(CheckpointError, match="entmax_alpha"):
        build(ARCH, bundle, "softmax", **OPTIONS)


def test_weights_that_the_head_was_not_trained_with_are_refused(trained: Runner, tmp_path: Path) -> None:
    contents = CheckpointLoader.load_checkpoint(str(Path(trained.work_dir) / "iter_2.pth"))
    contents["state_dict"]["backbone.vit.pos_embed"][0, 0, 0] += 1
    torch.save(contents, tmp_path / "head.pth")
    with pytest.raises(ValueError, match="its head was trained with weights of digest"):
        load(tmp_path / "head.pth", device="cpu")


def test_a_frozen_config_does_not_take_it(trained: Runner, parent: Path, roots: dict[str, Path]) -> None:
    config = Config.fromfile(config_file("voc2012"))
    config.merge_from_dict(options("voc2012_linear", parent, roots))
    with pytest.raises(ValueError, match="this head was trained together with its backbone"):
        init_model(config, str(Path(trained.work_dir) / "iter_2.pth"), device="cpu")


def test_the_result_says_so_and_stands_apart(trained: Runner) -> None:
    result = read_result(Path(trained.work_dir) / "probe.json")
    assert result.overrides is not None and "not the published protocol" in result.overrides["finetune"]
    assert not [key for key in result.overrides if key.startswith(("optim_wrapper", "model.backbone"))]
    (row,) = collect([trained.work_dir])
    assert next(iter(row.best)).startswith("voc2012 [fine-tuned")
    assert "fine-tuned" in render([row], paper=False).splitlines()[0]


@pytest.mark.nightly
def test_a_run_goes_on_where_it_stopped(parent: Path, roots: dict[str, Path], trained: Runner, tmp_path: Path) -> None:
    settings = options("voc2012_linear", parent, roots, 2, 2)
    short = {"train_cfg.val_interval": 1, "default_hooks.checkpoint.interval": 1}

    def stop(config: Config) -> None:
        at_once(config)
        config.train_cfg.max_iters = 1

    build_runner("voc2012_linear", settings | short, tmp_path, change=stop).train()
    (tmp_path / "probe.json").unlink()  # of a run that was to be shorter
    again = build_runner("voc2012_linear", settings, tmp_path, resume=True, change=at_once)
    again.train()
    for name, tensor in trained.model.state_dict().items():
        if name != "_extra_state":
            torch.testing.assert_close(again.model.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probe", "total"), [pytest.param("nyuv2_linear4_depth", 2, marks=pytest.mark.nightly), ("imagenet_linear", 4)]
)
def test_depth_and_classification(probe: str, total: int, parent: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    more = {"model.num_classes": 20} if probe == "imagenet_linear" else {}
    runner = tuned(probe, parent, roots, tmp_path, total, **more)
    moved = dict(runner.model.backbone.vit.named_parameters())
    before = build(checkpoint=parent)[0].get_parameter("patch_embed.proj.weight")
    assert not torch.equal(moved["patch_embed.proj.weight"], before)
    if probe == "imagenet_linear":
        assert list(runner.model.classifiers) == ["lr_1e-03"]
    prediction = load(tmp_path, device="cpu").predict(np.zeros((60, 90, 3), np.uint8))
    assert prediction.depth is not None or prediction.scores is not None


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["dinov1/vit_tiny", "dinov2/vit_small"])
def test_positions_that_timm_resamples_as_dino_are_trained(
    name: str, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attn_plugins.checkpoints.architectures import construct

    for variable in ("DINO_ROOT", "DINOV2_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    torch.manual_seed(0)
    model: Any
    model, _, _ = construct(name, None, None, {"img_size": 56, "patch_size": 14})
    state = dict(model.state_dict())
    if "v2" in name:
        state["mask_token"] = torch.zeros(1, model.embed_dim)
    torch.save({"model": state}, tmp_path / "vit.pth")
    more: dict[str, Any] = {"model.backbone.plugins": "entmax15"}
    runner = tuned("voc2012_linear", tmp_path / "vit.pth", roots, tmp_path / "run", **more)
    assert runner.model.backbone.vit.pos_embed.shape == state["pos_embed"].shape
    assert not torch.equal(runner.model.backbone.vit.pos_embed, state["pos_embed"])
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    probe = load(tmp_path / "run", device="cpu")
    saved = str(tmp_path / "run" / "iter_2.pth")
    expected = inference_model(init_model(copy.deepcopy(runner.cfg), saved, device="cpu"), image[..., ::-1].copy())
    found = probe.predict(image).mask
    assert found is not None and (found == expected.pred_sem_seg.data[0].numpy()).mean() > 0.999


def test_stochastic_depth_changes_no_identity(parent: Path) -> None:
    plain = TunedViT(checkpoint=str(parent))
    deep = TunedViT(checkpoint=str(parent), arch_options={"drop_path_rate": 0.5})
    assert deep.identity["digest"] == plain.identity["digest"] == FrozenViT(str(parent)).identity["digest"]
    images = torch.randn(8, 3, 64, 64)
    deep.train()
    assert not torch.equal(deep(images)[0], deep(images)[0])
    torch.testing.assert_close(deep.eval()(images)[0], FrozenViT(str(parent))(images)[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--finetune", "--fast"], "--fast keeps features of a backbone that stays as it is"),
        (["--layer-decay", "0.8"], "--layer-decay and --drop-path are of --finetune: add it"),
        (["--finetune", "--layer-decay", "1.5"], "layer decay 1.5 is not in (0, 1]"),
        (["--finetune", "--drop-path", "1"], "drop path 1.0 is not in [0, 1)"),
    ],
)
def test_what_cannot_be_is_named(
    more: list[str], message: str, parent: Path, roots: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["probe", "voc2012", "--checkpoint", str(parent), "--data-root", str(roots["voc2012"])]
    assert main([*command, *more]) == 2
    assert message in capsys.readouterr().err


def test_other_backbones_have_no_layers_to_decay(parent: Path) -> None:
    config = Config.fromfile(config_file("voc2012"))
    make_finetune(config)
    config.model.backbone.type, config.model.backbone.checkpoint = "FrozenViT", str(parent)
    from mmseg.registry import MODELS

    with pytest.raises(ValueError, match="LayerDecay is for a TunedViT, and the backbone is a FrozenViT"):
        build_optim_wrapper(MODELS.build(config.model), config.optim_wrapper)


@pytest.mark.nightly
def test_a_folder_of_transformers_is_tuned_and_exported(roots: dict[str, Path], tmp_path: Path) -> None:
    """Its config is no tensor, so that the folder has to stay where it is."""
    from transformers import Dinov2Config, Dinov2Model

    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: pip install attn_plugins[export]")
    pytest.importorskip("onnxscript", reason="needs the extra: pip install attn_plugins[export]")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=56, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(tmp_path / "folder")
    more: dict[str, Any] = {"model.backbone.plugins": "entmax15"}
    runner = tuned("voc2012_linear", tmp_path / "folder", roots, tmp_path / "run", **more)
    probe = load(tmp_path / "run", device="cpu")
    own = probe.model.backbone.model.state_dict()
    for name, tensor in runner.model.backbone.vit.state_dict().items():
        torch.testing.assert_close(own[name], tensor, rtol=0, atol=0)
    assert main(["export", str(tmp_path / "run"), "--onnx", str(tmp_path / "probe.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "probe.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 70, 56)).astype(np.float32)
    (logits,) = session.run(None, {"images": pixels})
    with torch.no_grad():
        inputs = runner.model.data_preprocessor({"inputs": [torch.from_numpy(pixels[0, ::-1].copy())]})["inputs"]
        expected = runner.model.eval().encode_decode(inputs, [{"img_shape": (70, 56)}])
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
