"""The ``mim`` command line of a probe: the config as it is, with data, sizes and iteration counts overridden."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .paths import config_file

__all__ = ["data_options", "iteration_options", "mim_command", "size_options"]

_LOADERS = ("train", "val", "test")


def data_options(data_root: str, train_data_root: str | None = None, workers: int | None = None) -> dict[str, Any]:
    """Options that point a config's three data loaders at a data root.

    Args:
        data_root: the data set.
        train_data_root: another one for training: NYUv2, when SUN RGB-D is probed by transfer.
        workers: loader processes; 0 loads in the training process.
    """
    options: dict[str, Any] = {}
    for loader in _LOADERS:
        root = train_data_root if loader == "train" and train_data_root else data_root
        options[f"{loader}_dataloader.dataset.data_root"] = root
        if workers is not None:
            options[f"{loader}_dataloader.num_workers"] = workers
            options[f"{loader}_dataloader.persistent_workers"] = workers > 0
    return options


def size_options(probe: str, crop: tuple[int, int], scale: tuple[int, int] | None = None) -> dict[str, Any]:
    """Options that shrink a config to small images; nothing else of the protocol changes.

    Args:
        probe: name or path of the config.
        crop: (height, width) of the training crop; KITTI's benchmark crop and the slide window follow.
        scale: segmentation's base scale (longest, shortest); default keeps its ratio to the crop.
    """
    config = Config.fromfile(config_file(probe))
    options: dict[str, Any] = {}
    pipelines = {
        f"{name}_dataloader.dataset.pipeline": config[f"{name}_dataloader"].dataset.pipeline for name in _LOADERS
    }
    pipelines["test_pipeline"] = config.test_pipeline  # what mmseg's inference API takes
    for place, pipeline in pipelines.items():
        for index, transform in enumerate(pipeline):
            for key, value in _resized(transform, crop, scale).items():
                options[f"{place}.{index}.{key}"] = value
    if config.model.get("data_preprocessor", {}).get("size"):
        options["model.data_preprocessor.size"] = crop
    if config.model.get("test_cfg", {}).get("mode") == "slide":
        options["model.test_cfg.crop_size"] = crop
        options["model.test_cfg.stride"] = tuple(-(-2 * side // 3) for side in crop)
    return options


def iteration_options(probe: str, iterations: int) -> dict[str, Any]:
    """Options that shorten a config's training; warm-up and decay keep their share of it.

    Args:
        probe: name or path of the config.
        iterations: optimizer steps; validated and saved once, at the end.
    """
    config = Config.fromfile(config_file(probe))
    share = iterations / config.train_cfg.max_iters
    options = {
        "train_cfg.max_iters": iterations,
        "train_cfg.val_interval": iterations,
        "default_hooks.checkpoint.interval": iterations,
        "default_hooks.logger.interval": max(iterations // 4, 1),
    }
    schedulers = config.param_scheduler
    named = {"": schedulers} if isinstance(schedulers, Mapping) else {f".{i}": s for i, s in enumerate(schedulers)}
    for name, scheduler in named.items():
        # mmengine's linear and poly schedules go over end - 1 iterations; a momentum's end where the next one begins.
        last = int(scheduler["type"] in ("LinearLR", "PolyLR", "CosineAnnealingMomentum"))
        more = {"begin": 0, "end": last, "T_max": 0}
        for key in more.keys() & scheduler.keys():
            if key != "begin" or scheduler[key]:
                steps = round((scheduler[key] - more[key]) * share)
                options[f"param_scheduler{name}.{key}"] = max(steps, 1) + more[key]
    return options


def _resized(transform: Mapping[str, Any], crop: tuple[int, int], scale: tuple[int, int] | None) -> dict[str, Any]:
    kind = transform["type"]
    if kind in ("RandomResize", "Resize"):
        return {"scale": scale or tuple(side * crop[0] // 512 for side in transform["scale"])}
    if kind == "RandomCrop":
        return {"crop_size": crop}
    if kind == "RandomResizedCrop":
        return {"size": crop[0]}
    if kind == "ResizeCenterCrop":
        return {"resize": crop[0] * 8 // 7, "crop": crop[0]}
    if kind == "KBCrop":
        return {"height": crop[0], "width": crop[1]}
    return {}


def mim_command(
    action: str, probe: str, options: Mapping[str, Any], *arguments: str, work_dir: str | Path | None = None
) -> list[str]:
    """The argument vector of ``mim ACTION mmseg CONFIG …`` in this interpreter.

    Args:
        action: ``train`` or ``test``.
        probe: name or path of the config.
        options: for ``--cfg-options``.
        arguments: further arguments (``--resume``, ``--launcher``, ``pytorch``, ``--gpus``, ``2``).
        work_dir: where logs and checkpoints go.
    """
    command = [sys.executable, "-m", "mim", action, "mmseg", str(config_file(probe)), *arguments]
    if work_dir is not None:
        command += ["--work-dir", str(work_dir)]
    if options:
        command += ["--cfg-options", *(f"{key}={_text(value)}" for key, value in options.items())]
    return command


def _text(value: Any) -> str:
    """A value as mmengine's DictAction reads it."""
    if isinstance(value, tuple | list):
        brackets = "()" if isinstance(value, tuple) else "[]"
        return brackets[0] + ",".join(map(_text, value)) + brackets[1]
    return str(value)
