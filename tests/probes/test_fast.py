"""The fast probe: features computed once, the same head, and a result that says what it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model

from attn_plugins.probes import FrozenViT, LinearProbe, StoredViews, make_fast
from attn_plugins.probes.run.paths import config_file
from attn_plugins.probes.run.runner import build_runner
from attn_plugins.results import collect, read_result, render

from .running import options


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def fast(backbone: Path, roots: dict[str, Path], folder: Path, store: Path, **more: Any) -> Runner:
    settings = options("voc2012_linear", backbone, roots, iterations=3, total=4)
    views = more.pop("views", 1)
    return build_runner(
        "voc2012", {**settings, **more}, folder, change=lambda config: make_fast(config, views=views, store=str(store))
    )


@pytest.fixture(scope="module")
def trained(backbone_file: Path, roots: dict[str, Path], store: Path, tmp_path_factory: Any) -> Runner:
    runner = fast(backbone_file, roots, tmp_path_factory.mktemp("fast"), store)
    runner.train()
    return runner


@pytest.mark.slow
def test_stored_features_are_the_backbones_own(trained: Runner, roots: dict[str, Path]) -> None:
    data = trained.train_loop.dataloader.dataset
    assert isinstance(data, StoredViews) and len(data) == 4
    config = copy.deepcopy(trained.cfg)
    model = init_model(config, str(Path(trained.work_dir) / "iter_3.pth"), device="cpu")
    for index in (0, 3):
        path = data.dataset.get_data_info(index)["img_path"]
        # mmseg's own loading, resizing and normalising of the same picture.
        (expected,) = model.backbone(inference_inputs(model, path))
        torch.testing.assert_close(data[index]["inputs"], expected[0], atol=2e-3, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [[-1], [1, 3]])
def test_a_step_is_that_of_a_linear_probe_on_all_images_of_the_batch(
    layers: list[int], backbone_file: Path, roots: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    """mmseg's own segmentor, on the images themselves."""
    runner = fast(backbone_file, roots, tmp_path, store, **{"model.backbone.out_indices": layers})
    runner.train()
    batch = next(iter(runner.train_loop.dataloader))
    assert len(batch["inputs"]) == len(batch["data_samples"]) == 4
    model = runner.model.eval()
    data = model.data_preprocessor(batch, True)
    found = model(**data, mode="loss")["decode.loss_ce"]
    numbers = [int(index) for index, _ in zip(runner.train_loop.dataloader.sampler, range(4), strict=False)]
    views = runner.train_loop.dataloader.dataset
    images = [inference_inputs(init_model(copy.deepcopy(runner.cfg), device="cpu"), path) for path in
              (views.dataset.get_data_info(number)["img_path"] for number in numbers)]  # fmt: skip
    plain = LinearProbe.loss(model, torch.cat(images), data["data_samples"])["decode.loss_ce"]
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=1e-3)


def inference_inputs(model: Any, path: str) -> torch.Tensor:
    from mmseg.apis.utils import _preprare_data

    data, _ = _preprare_data(path, model)
    out: torch.Tensor = model.data_preprocessor(data, False)["inputs"]
    return out


@pytest.mark.slow
def test_the_validation_is_what_the_head_predicts_from_images(trained: Runner) -> None:
    """mmseg's inference API, from the files alone, reaches the recorded mIoU."""
    folder = Path(trained.work_dir)
    model = init_model(copy.deepcopy(trained.cfg), str(folder / "iter_3.pth"), device="cpu")
    data = trained.val_loop.dataloader.dataset
    metric = trained.val_evaluator.metrics[0]
    for index in range(len(data)):
        predicted = inference_model(model, data.dataset.get_data_info(index)["img_path"]).pred_sem_seg.data
        truth = data[index]["data_samples"].gt_sem_seg.data
        sample = {"pred_sem_seg": {"data": predicted}, "gt_sem_seg": {"data": truth}, "img_path": str(index)}
        metric.process({}, [sample])
    again = metric.evaluate(len(data))
    (recorded,) = read_result(folder / "probe.json").evaluations_of("val")
    assert again["aAcc"] == pytest.approx(recorded.metrics["aAcc"], abs=0.3)


def test_the_result_says_that_it_is_no_published_protocol(trained: Runner) -> None:
    result = read_result(Path(trained.work_dir) / "probe.json")
    assert result.overrides is not None
    assert "not the published protocol" in result.overrides["fast"]
    changed = {key for key in result.overrides if key.startswith("model.")}
    assert changed <= {"model.data_preprocessor.size"}  # the test's own
    assert result.data["train"].dataset == "PascalVOCDataset" and result.data["train"].images == 4
    rows = collect([trained.work_dir])
    (key,) = rows[0].best
    assert key.startswith("voc2012 [fast")
    assert "fast" in render(rows, paper=False).splitlines()[0]


@pytest.mark.slow
def test_a_second_run_computes_nothing(
    backbone_file: Path, roots: dict[str, Path], store: Path, trained: Runner, tmp_path: Path, monkeypatch: Any
) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.safetensors")}

    def refuse(self: FrozenViT, images: torch.Tensor) -> None:
        raise AssertionError("the backbone ran again")

    monkeypatch.setattr(FrozenViT, "forward", refuse)
    again = fast(backbone_file, roots, tmp_path, store, **{"optim_wrapper.optimizer.lr": 0.01})
    again.train()
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_views_are_mirrored_and_scaled(
    backbone_file: Path, roots: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    runner = fast(backbone_file, roots, tmp_path, store, views=3)
    runner.train()
    data = runner.train_loop.dataloader.dataset
    assert len(data) == 12
    plain, mirrored, larger = (data[index] for index in range(3))
    labels = [view["data_samples"].gt_sem_seg.data for view in (plain, mirrored, larger)]
    assert larger["inputs"].shape[2] > plain["inputs"].shape[2]
    whole = torch.from_numpy(data.dataset[0]["gt_seg_map"])[None, None].byte()
    for view, own, pixels in zip((plain, mirrored, larger), labels, (whole, whole.flip(3), whole), strict=True):
        size = [4 * side for side in view["inputs"].shape[1:]]
        expected = torch.nn.functional.interpolate(pixels, size=size, mode="nearest-exact")
        assert torch.equal(own, expected[0].long())


def test_what_is_no_probe_is_refused() -> None:
    config = Config.fromfile(config_file("nyuv2"))
    config.model.type = "EncoderDecoder"
    before = config.pretty_text
    with pytest.raises(ValueError, match="LinearProbe, DepthProbe, ClassifierGrid, and this is a EncoderDecoder"):
        make_fast(config)
    assert config.pretty_text == before
