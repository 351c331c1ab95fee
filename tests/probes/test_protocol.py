"""Every config, built by mmengine, has the protocol's numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS, PARAM_SCHEDULERS

from attn_plugins.probes.run.command import iteration_options
from attn_plugins.probes.run.paths import config_file, configs_dir

SEGMENTATION = {"voc2012": (21, (2048, 512)), "ade20k": (150, (2048, 512)), "cityscapes": (19, (2048, 1024))}
DEPTH = {"nyuv2": 10.0, "kitti": 80.0, "sunrgbd": 10.0, "sunrgbd_linear4_depth_train": 10.0}
GRID = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]


def load(probe: str) -> Config:
    return Config.fromfile(config_file(probe))


def step(config: Config, loader: str, kind: str) -> dict[str, Any]:
    found = [t for t in config[f"{loader}_dataloader"].dataset.pipeline if t.type == kind]
    assert len(found) == 1, f"{kind} is in the {loader} pipeline {len(found)} times"
    return {key: value for key, value in found[0].items() if key != "type"}


def learning_rates(config: Config, at: list[int], base: float) -> list[float]:
    """What the configured schedulers give at the iterations `at`."""
    return [rate for rate, _ in scheduled(config, at, base)]


def scheduled(config: Config, at: list[int], base: float) -> list[tuple[float, float]]:
    """Learning rate and beta 1 of the iterations `at`."""
    init_default_scope("mmseg")
    parameter = torch.nn.Parameter(torch.zeros(1))
    betas = config.optim_wrapper.optimizer.get("betas", (0.9, 0.999))
    wrapper = OptimWrapper(torch.optim.AdamW([parameter], lr=base, betas=betas))
    schedules = config.param_scheduler if isinstance(config.param_scheduler, list) else [config.param_scheduler]
    schedulers = [PARAM_SCHEDULERS.build(dict(s, optimizer=wrapper)) for s in schedules]
    found = {}
    for iteration in range(max(at) + 1):
        group = wrapper.param_groups[0]
        found[iteration] = group["lr"], group["betas"][0]
        for scheduler in schedulers:
            scheduler.step()
    return [found[iteration] for iteration in at]


def test_the_eight_configs() -> None:
    assert {path.stem for path in configs_dir().glob("*.py")} == {
        "imagenet_linear", "voc2012_linear", "ade20k_linear", "cityscapes_linear", "nyuv2_linear4_depth",
        "kitti_linear4_depth", "sunrgbd_linear4_depth", "sunrgbd_linear4_depth_train",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no probe 'coco'"):
        config_file("coco")


@pytest.mark.parametrize("probe", SEGMENTATION)
def test_segmentation(probe: str) -> None:
    config = load(probe)
    classes, scale = SEGMENTATION[probe]
    head, backbone = config.model.decode_head, config.model.backbone
    assert (head.type, head.num_classes, head.align_corners) == ("BNLinearHead", classes, False)
    assert (backbone.type, backbone.out_indices, backbone.norm, backbone.cls_token) == ("FrozenViT", [-1], True, "none")
    assert config.optim_wrapper.optimizer == {"type": "AdamW", "lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-4}
    assert "clip_grad" not in config.optim_wrapper
    assert (config.train_cfg.max_iters, config.train_cfg.total_batch_size) == (40_000, 16)
    assert step(config, "train", "RandomResize") == {"scale": scale, "ratio_range": (0.5, 2.0), "keep_ratio": True}
    assert step(config, "train", "RandomCrop") == {"crop_size": (512, 512), "cat_max_ratio": 0.75}
    assert step(config, "train", "RandomFlip") == {"prob": 0.5}
    assert step(config, "train", "PhotoMetricDistortion") == {}
    assert (config.model.data_preprocessor["size"], config.model.data_preprocessor.seg_pad_val) == ((512, 512), 255)
    assert config.model.test_cfg == {"mode": "slide", "crop_size": (512, 512), "stride": (341, 341)}
    for loader in ("val", "test"):
        assert step(config, loader, "Resize") == {"scale": scale, "keep_ratio": True}
    reduces = probe == "ade20k"
    assert step(config, "train", "LoadAnnotations").get("reduce_zero_label", False) == reduces
    assert (config.default_hooks.checkpoint.save_best, config.default_hooks.checkpoint.rule) == ("mIoU", "greater")
    if probe == "voc2012":
        assert config.train_dataloader.dataset.ann_file == "ImageSets/Segmentation/train.txt"


def mmcv_1(kind: str, steps: int, warm_up: int, ratio: float, smallest: float = 0.0, base: float = 1e-3) -> list[float]:
    """The rate of every iteration by mmcv 1.x: `LrUpdaterHook` with `by_epoch=False` and linear warm-up.

    lr_updater.py: Poly and CosineAnnealing give the regular rate from runner.iter / runner.max_iters over the whole
    run; for the first `warmup_iters` iterations it is multiplied by 1 - (1 - iter / warmup_iters) (1 - warmup_ratio).
    """
    rates = []
    for t in range(steps):
        progress = t / steps
        if kind == "poly":
            regular = (base - smallest) * (1 - progress) ** 1.0 + smallest
        else:
            regular = base * smallest + 0.5 * (base - base * smallest) * (math.cos(math.pi * progress) + 1)
        rates.append(regular * (1 - (1 - t / warm_up) * (1 - ratio)) if t < warm_up else regular)
    return rates


@pytest.mark.parametrize("probe", ["voc2012", "ade20k", "cityscapes"])
def test_segmentation_schedule_is_mmcv_1s(probe: str) -> None:
    expected = mmcv_1("poly", 40_000, 1_500, 1e-6)
    assert expected[-1] == pytest.approx(2.5e-8)
    assert learning_rates(load(probe), list(range(40_000)), 1e-3) == pytest.approx(expected, rel=1e-8, abs=0)


@pytest.mark.parametrize(("probe", "iterations"), [("voc2012", 36), ("nyuv2", 60), ("imagenet", 20)])
def test_a_shortened_schedule_is_the_same_one(probe: str, iterations: int) -> None:
    config = load(probe)
    config.merge_from_dict(iteration_options(probe, iterations))
    kind, steps, warm_up, ratio, smallest = {
        "voc2012": ("poly", 40_000, 1_500, 1e-6, 0.0),
        "nyuv2": ("cosine", 38_400, 12_800, 1e-3, 1e-8),
        "imagenet": ("cosine", 12_500, 0, 1.0, 0.0),
    }[probe]
    shortened = max(round(warm_up * iterations / steps), 1) if warm_up else 0
    expected = mmcv_1(kind, iterations, shortened, ratio, smallest)
    assert learning_rates(config, list(range(iterations)), 1e-3) == pytest.approx(expected, rel=1e-6, abs=0)


@pytest.mark.parametrize("probe", DEPTH)
def test_depth(probe: str) -> None:
    config = load(probe)
    head, backbone = config.model.decode_head, config.model.backbone
    assert (head.type, head.n_bins, head.upsample, head.min_depth) == ("DepthBinsHead", 256, 4, 0.001)
    assert head.max_depth == config.val_evaluator.max_depth == DEPTH[probe]
    assert (backbone.out_indices, backbone.norm, backbone.cls_token) == ("four", False, "concat")
    sig, gradient = head.loss_decode
    assert (sig.type, sig.loss_weight, sig.warm_iter) == ("SigLoss", 1.0, 100)
    assert (gradient.type, gradient.loss_weight) == ("LogGradientLoss", 0.5)
    assert config.optim_wrapper.optimizer == {"type": "AdamW", "lr": 1e-3, "betas": (0.95, 0.999), "weight_decay": 0.01}
    assert config.optim_wrapper.clip_grad == {"max_norm": 35, "norm_type": 2}
    assert (config.train_cfg.max_iters, config.train_cfg.total_batch_size) == (38_400, 16)
    assert (config.model.test_cfg.mode, config.model.test_cfg.flip) == ("whole", True)
    scale, rotated = (256 if probe == "kitti" else 1000), probe.startswith("sunrgbd")
    assert step(config, "val", "LoadDepth") == {"scale": scale} | ({"rotated": True} if rotated else {})
    assert step(config, "train", "RandomDepthRotate") == {"prob": 0.5, "degree": 2.5}
    assert step(config, "train", "RandomFlip") == {"prob": 0.5}
    brightness = (0.9, 1.1) if probe == "kitti" else (0.75, 1.25)
    color = {"prob": 0.5, "gamma": (0.9, 1.1), "brightness": brightness, "color": (0.9, 1.1)}
    assert step(config, "train", "ColorAugment") == color
    assert step(config, "train", "RandomCrop") == {"crop_size": (352, 704) if probe == "kitti" else (416, 544)}
    crop = {"nyuv2": "eigen", "kitti": "garg"}.get(probe)
    assert config.val_evaluator.crop == config.test_evaluator.crop == crop
    assert (config.default_hooks.checkpoint.save_best, config.default_hooks.checkpoint.rule) == ("rmse", "less")


def test_depth_crops_and_transfer() -> None:
    assert step(load("nyuv2"), "train", "BorderCrop") == {"crop": (45, 472, 43, 608)}
    for loader in ("train", "val", "test"):
        assert step(load("kitti"), loader, "KBCrop") == {"height": 352, "width": 1216}
    transfer = load("sunrgbd")
    assert transfer.train_dataloader == load("nyuv2").train_dataloader
    assert transfer.val_dataloader == transfer.test_dataloader
    assert transfer.val_dataloader.dataset.ann_file == "SUNRGBD_val_splits.txt"


def one_cycle(steps: int) -> list[float]:
    """Beta 1 of every iteration by mmcv 1.x's `OneCycleMomentumUpdaterHook` (momentum_updater.py) with its defaults."""
    low = 0.3 * steps - 1
    found = []
    for t in range(steps):
        start, end, share = (0.95, 0.85, t / low) if t <= low else (0.85, 0.95, (t - low) / (steps - 1 - low))
        found.append(end + (start - end) / 2 * (math.cos(math.pi * share) + 1))
    return found


@pytest.mark.parametrize("probe", DEPTH)
def test_depth_schedule_is_mmcv_1s(probe: str) -> None:
    expected = mmcv_1("cosine", 38_400, 12_800, 1e-3, smallest=1e-8)
    rates, betas = zip(*scheduled(load(probe), list(range(38_400)), 1e-3), strict=True)
    assert rates == pytest.approx(expected, rel=1e-6, abs=0)
    assert betas == pytest.approx(one_cycle(38_400), rel=1e-6, abs=0)


@pytest.mark.parametrize("iterations", [2, 3, 10, 60, 400])
def test_a_shortened_run_has_the_momentum_in_proportion(iterations: int) -> None:
    config = load("nyuv2")
    config.merge_from_dict(iteration_options("nyuv2", iterations))
    betas = [beta for _, beta in scheduled(config, list(range(iterations)), 1e-3)]
    assert betas[0] == pytest.approx(0.95) and min(betas) >= 0.85 - 1e-9 and max(betas) <= 0.95 + 1e-9
    if iterations >= 10:
        assert betas[round(0.3 * iterations)] < 0.86 and betas[-1] > 0.945


def test_imagenet_schedule_is_torchs() -> None:
    """DINOv2, eval/linear.py: torch's CosineAnnealingLR over all iterations, down to 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12_500, eta_min=0)
    expected = []
    for _ in range(12_500):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert learning_rates(load("imagenet"), list(range(12_500)), 1.0) == pytest.approx(expected, rel=1e-6, abs=0)


def test_imagenet() -> None:
    config = load("imagenet")
    model = config.model
    assert (model.type, model.num_classes, model.learning_rates) == ("ClassifierGrid", 1000, GRID)
    assert (model.blocks, model.avgpool) == ([1], [False])
    assert (model.backbone.out_indices, model.backbone.norm, model.backbone.cls_token) == ([-1], True, "tuple")
    assert (config.train_cfg.max_iters, config.train_cfg.total_batch_size) == (12_500, 1024)
    assert config.train_dataloader.batch_size == 128
    assert config.optim_wrapper.optimizer == {"type": "SGD", "lr": 1.0, "momentum": 0.9, "weight_decay": 0}
    assert config.auto_scale_lr == {"enable": True, "base_batch_size": 256}
    assert step(config, "train", "RandomResizedCrop") == {"size": 224}
    assert step(config, "train", "RandomFlip") == {"prob": 0.5}
    assert step(config, "val", "ResizeCenterCrop") == {"resize": 256, "crop": 224}
    assert learning_rates(config, [0, 6_250, 12_499], 1.0) == pytest.approx([1, 0.5, 0], abs=1e-6)


def test_each_classifier_gets_its_own_learning_rate(backbone_file: Path) -> None:
    from mmengine.optim import build_optim_wrapper

    init_default_scope("mmseg")
    config = load("imagenet")
    config.model.backbone.checkpoint = str(backbone_file)
    model = MODELS.build(config.model)
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rate_of) == 26
    for (name, classifier), rate in zip(model.classifiers.items(), GRID, strict=True):
        assert [rate_of[id(p)] for p in classifier.parameters()] == pytest.approx([rate, rate]), name
        assert classifier.bias.abs().sum() == 0
        assert classifier.weight.detach().std() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("path", sorted(configs_dir().glob("*.py")), ids=lambda path: path.stem)
def test_images_are_normalised_as_imagenet_and_the_seed_is_fixed(path: Path) -> None:
    config = Config.fromfile(path)
    processor = config.model.data_preprocessor
    assert [m / 255 for m in processor.mean] == pytest.approx([0.485, 0.456, 0.406])
    assert [s / 255 for s in processor.std] == pytest.approx([0.229, 0.224, 0.225])
    assert processor.bgr_to_rgb and config.randomness.seed == 0
    assert config.train_dataloader.dataset.pipeline[0].type == "SeedDraw"
