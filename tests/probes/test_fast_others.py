"""The fast probes of depth and of classes: the same heads on features computed once, in results that say so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.apis import init_model
from mmseg.structures import SegDataSample
from PIL import Image

from attn_plugins.cli import main
from attn_plugins.probes import (
    ClassifierGrid,
    DepthProbe,
    FrozenViT,
    StoredClasses,
    StoredDepth,
    load,
    make_fast,
)
from attn_plugins.probes.run.paths import config_file
from attn_plugins.probes.run.runner import build_runner
from attn_plugins.results import collect, read_result

from .running import options


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def fast(probe: str, backbone: Path, roots: dict[str, Path], folder: Path, store: Path, views: int = 1) -> Runner:
    more = {"model.num_classes": 20} if probe == "imagenet_linear" else {}
    settings = options(probe, backbone, roots, iterations=3, total=4, **more)
    runner = build_runner(probe, settings, folder, change=lambda config: make_fast(config, views, store=str(store)))
    runner.train()
    return runner


@pytest.fixture(scope="module")
def deep(backbone_file: Path, roots: dict[str, Path], store: Path, tmp_path_factory: Any) -> Runner:
    return fast("nyuv2_linear4_depth", backbone_file, roots, tmp_path_factory.mktemp("depth"), store, views=2)


@pytest.fixture(scope="module")
def grid(backbone_file: Path, roots: dict[str, Path], store: Path, tmp_path_factory: Any) -> Runner:
    return fast("imagenet_linear", backbone_file, roots, tmp_path_factory.mktemp("classes"), store, views=2)


def as_mmseg_takes_it(runner: Runner, pipeline: Any, info: dict[str, Any], mirrored: bool) -> torch.Tensor:
    """`[1, 3, H, W]` through the shipped pipeline and preprocessor."""
    from mmcv.transforms import Compose

    packed = Compose(pipeline)(copy.deepcopy(info))
    inputs = packed["inputs"].flip(2) if mirrored else packed["inputs"]
    data = {"inputs": [inputs], "data_samples": [packed["data_samples"]]}
    inputs = runner.model.data_preprocessor(data, False)["inputs"]
    assert isinstance(inputs, torch.Tensor)
    return inputs


@pytest.mark.slow
def test_a_step_of_depth_is_that_of_the_probe_on_the_images(deep: Runner) -> None:
    """The published pipeline without its random transforms; labels at the resolution of the prediction."""
    config = Config.fromfile(config_file("nyuv2"))
    drawn = ("SeedDraw", "RandomDepthRotate", "RandomFlip", "RandomCrop", "ColorAugment")
    pipeline = [t for t in config.train_dataloader.dataset.pipeline if t["type"] not in drawn]
    data, model = deep.train_loop.dataloader.dataset, deep.model.eval()
    assert isinstance(data, StoredDepth) and len(data) == 8
    for index in (0, 3):
        info = data.dataset.get_data_info(index // 2)
        images = as_mmseg_takes_it(deep, pipeline, info, mirrored=index % 2 == 1)
        batch = model.data_preprocessor({key: [value] for key, value in data[index].items()}, True)
        depth = batch["data_samples"][0].gt_depth_map.data
        assert depth.shape[1:] == tuple(4 * -(-side // 16) for side in images.shape[2:]) and depth.max() > 0
        with torch.no_grad():
            found = model.loss(**batch)
            expected = DepthProbe.loss(model, images, batch["data_samples"])
        assert found.keys() == expected.keys() and "decode.loss_grad" in found
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=2e-3, rtol=2e-3)


@pytest.mark.slow
def test_depth_is_validated_as_it_is_predicted(deep: Runner) -> None:
    """From the file alone, by `load`, on the images."""
    folder = Path(deep.work_dir)
    probe = load(folder, device="cpu")
    data, metric = deep.val_loop.dataloader.dataset, deep.val_evaluator.metrics[0]
    for index in range(len(data)):
        found = probe.predict(data.dataset.get_data_info(index)["img_path"]).depth
        truth = data[index]["data_samples"].gt_depth_map.data
        assert found is not None
        metric.process({}, [{"pred_depth_map": {"data": torch.from_numpy(found)}, "gt_depth_map": {"data": truth}}])
    (recorded,) = read_result(folder / "probe.json").evaluations_of("val")
    assert metric.evaluate(len(data))["rmse"] == pytest.approx(recorded.metrics["rmse"], rel=1e-2)


@pytest.mark.slow
def test_classes_are_scored_as_by_the_grid_on_the_images(grid: Runner) -> None:
    config = Config.fromfile(config_file("imagenet"))
    pipeline = config.test_pipeline
    for transform in pipeline:
        if transform["type"] == "ResizeCenterCrop":
            transform.update(resize=64 * 8 // 7, crop=64)
    data, model = grid.train_loop.dataloader.dataset, grid.model.eval()
    assert isinstance(data, StoredClasses) and len(data) == 40
    for index in (0, 7):
        info = data.dataset.get_data_info(index // 2)
        images = as_mmseg_takes_it(grid, pipeline, info, mirrored=index % 2 == 1)
        entry = data[index]
        batch = model.data_preprocessor({"inputs": [entry["inputs"]], "data_samples": [entry["data_samples"]]}, True)
        with torch.no_grad():
            found, expected = model(batch["inputs"]), ClassifierGrid.forward(model, images)
        assert found.keys() == expected.keys() and len(found) == 13
        for name, logits in expected.items():
            torch.testing.assert_close(found[name], logits, atol=1e-5, rtol=1e-4)
        assert int(entry["data_samples"].gt_label) == info["gt_label"]


@pytest.mark.slow
def test_blocks_and_the_mean_patch_are_there(
    backbone_file: Path, roots: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    """DINOv2's larger grid."""
    settings = options("imagenet_linear", backbone_file, roots, iterations=2, total=4)
    settings |= {"model.num_classes": 20, "model.backbone.out_indices": [2, 3]}
    settings |= {"model.blocks": [1, 2], "model.avgpool": [False, True], "model.learning_rates": [1e-3]}

    def change(config: Config) -> None:
        make_fast(config, store=str(store))
        config.optim_wrapper = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01}}

    runner = build_runner("imagenet_linear", settings, tmp_path, change=change)
    runner.train()
    data, model = runner.val_loop.dataloader.dataset, runner.model.eval()
    images = as_mmseg_takes_it(runner, runner.cfg.test_pipeline, data.dataset.get_data_info(1), mirrored=False)
    with torch.no_grad():
        found, expected = model(data[1]["inputs"][None]), ClassifierGrid.forward(model, images)
    assert len(found) == 4
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deep", "grid"])
def test_the_result_says_so_and_a_second_run_computes_nothing(
    kind: str,
    backbone_file: Path,
    roots: dict[str, Path],
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    first = request.getfixturevalue(kind)
    result = read_result(Path(first.work_dir) / "probe.json")
    assert result.overrides is not None and "not the published protocol" in result.overrides["fast"]
    assert {key for key in result.overrides if key.startswith("model.")} <= {"model.num_classes"}  # the test's own
    (row,) = collect([first.work_dir])
    assert "[fast" in next(iter(row.best))

    def refuse(self: FrozenViT, images: torch.Tensor) -> None:
        raise AssertionError("the backbone ran again")

    monkeypatch.setattr(FrozenViT, "forward", refuse)
    probe = "nyuv2_linear4_depth" if kind == "deep" else "imagenet_linear"
    again = fast(probe, backbone_file, roots, tmp_path, store, views=2)
    for name, tensor in first.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor)


def test_a_head_of_it_is_one_of_mmsegs_inference(deep: Runner, roots: dict[str, Path]) -> None:
    from mmseg.apis import inference_model

    image = deep.val_loop.dataloader.dataset.dataset.get_data_info(0)["img_path"]
    saved = str(Path(deep.work_dir) / "iter_3.pth")
    expected = inference_model(init_model(copy.deepcopy(deep.cfg), saved, device="cpu"), image).pred_depth_map.data
    found = load(deep.work_dir, device="cpu").predict(image).depth
    assert found is not None
    np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-4)


def test_images_of_other_sizes_count_by_their_number(backbone_file: Path, roots: dict[str, Path], deep: Runner) -> None:
    """Batches of one size and of several have the same mean."""
    model, data = deep.model, deep.train_loop.dataloader.dataset
    small, large = data[0], data[2]
    depth = large["data_samples"].gt_depth_map.data[:, :, :-4]
    large = {
        "inputs": large["inputs"][:, :, :-1],
        "data_samples": SegDataSample(gt_depth_map=PixelData(data=depth)),
    }

    def loss(*entries: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            found = model.loss([e["inputs"] for e in entries], [e["data_samples"] for e in entries])
        value: torch.Tensor = found["decode.loss_grad"]
        return value

    torch.testing.assert_close(loss(small, large), (loss(small) + loss(large)) / 2)


def test_what_the_command_refuses(
    backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 40, 40, 3)).astype(np.uint8)
    for number, image in enumerate(pixels):
        file = tmp_path / "classes" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    command = ["probe", "folder", "--images", "classes", "--checkpoint", str(backbone_file), "--fast"]
    assert main([*command, "--check", "--size", "99"]) == 2
    assert "--size is no option of the fast probe of depth and classes" in capsys.readouterr().err
    assert main([*command, "--learning-rates", "0.1"]) == 2
    assert "trains a classifier for each of its learning rates" in capsys.readouterr().err
    assert not (tmp_path / "work_dirs").exists()
    assert main([*command, "--check", "--views", "3"]) == 2
    assert "views=3; there are 1 to 2 fixed views" in capsys.readouterr().err
