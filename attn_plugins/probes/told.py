"""What a trained probe says of itself, in its checkpoint: enough to predict with it, and nothing that is run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .ownership import probe_model

__all__ = ["META_KEY", "ProbeRecord", "record_of_run"]

META_KEY = "attn_plugins_probe"
"""Where a checkpoint's ``meta``, and a bundle's metadata, hold the record, as JSON."""

_TASKS = {
    "LinearProbe": "segmentation", "FastLinearProbe": "segmentation",
    "DepthProbe": "depth", "FastDepthProbe": "depth",
    "ClassifierGrid": "classification", "FastClassifierGrid": "classification",
}  # fmt: skip


@dataclass(frozen=True)
class ProbeRecord:
    """A probe, as far as predicting goes.

    Attributes:
        task: ``segmentation``, ``depth`` or ``classification``.
        name: of the probe, ``voc2012`` or ``own:camvid``.
        backbone: ``arch``, ``plugins``, ``arch_options``, ``repo``, ``out_indices``, ``norm``, ``cls_token``,
            ``autocast``.
        head: arguments of the head.
        inference: ``mode`` and windows of segmentation, ``flip`` of depth.
        mean, std: RGB, 0 to 255.
        scale: (longest, shortest) side of segmentation's images; (resize, crop) of classification's; else empty.
        exif: whether images are turned as they say.
        classes: names.
        palette: a colour for each class.
        values: the value, or the colour, that masks have for each class; empty where it is the class's number.
        tuned: whether the backbone was trained too, so that its weights are in the probe's own file.
    """

    task: str
    name: str
    backbone: Mapping[str, Any]
    head: Mapping[str, Any]
    mean: Sequence[float]
    std: Sequence[float]
    inference: Mapping[str, Any] = field(default_factory=dict)
    scale: Sequence[int] = ()
    exif: bool = True
    classes: Sequence[str] = ()
    palette: Sequence[Sequence[int]] = ()
    values: Sequence[Any] = ()
    tuned: bool = False

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parsed(cls, text: Any, where: str) -> ProbeRecord:
        """From JSON.

        Raises:
            ValueError: it is damaged, or of a task that is not known; ``where`` is named.
        """
        try:
            record = cls(**json.loads(text))
            if record.task not in _TASKS.values():
                raise ValueError(f"task {record.task!r}")
            for name in ("backbone", "head", "inference"):
                dict(getattr(record, name))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{where}: what it says of its probe is damaged: {error}") from error
        return record


def record_of_run(runner: Any) -> ProbeRecord | None:
    """The record of a run; None of a model that is no probe of this package."""
    config, model = runner.cfg, probe_model(runner)
    task = _TASKS.get(type(model).__name__)
    if task is None:
        return None
    told = config.model.to_dict()
    own = told["backbone"]
    backbone = {name: own.get(name) for name in ("repo", "arch_options", "random_init", "out_indices", "autocast")}
    backbone |= {name: model.backbone.identity[name] for name in ("arch", "plugins", "norm", "cls_token")}
    if model.backbone.tuned:
        backbone["arch_options"] = model.backbone.arch_options
    by_type = {transform["type"]: dict(transform) for transform in _pipeline(config)}
    reader = by_type.get("LoadImageFromFile") or by_type.get("LoadProbeImage") or {}
    meta = _dataset_meta(runner)
    preprocessor = model.data_preprocessor
    return ProbeRecord(
        task=task,
        name=str(config.get("probe")),
        backbone=backbone,
        head=_head(task, told),
        mean=preprocessor.mean.flatten().tolist(),
        std=preprocessor.std.flatten().tolist(),
        inference=dict(told.get("test_cfg") or {}),
        scale=_scale(task, by_type),
        exif=bool(reader.get("exif", True)),
        classes=list(meta.get("classes", ())),
        palette=[[int(part) for part in colour] for colour in meta.get("palette", ())],
        values=by_type.get("LoadMask", {}).get("values", ()),
        tuned=model.backbone.tuned,
    )


def _pipeline(config: Any) -> Sequence[Mapping[str, Any]]:
    told: Sequence[Mapping[str, Any]] = config.get("test_pipeline") or config.val_dataloader.dataset.pipeline
    return told


def _head(task: str, told: Mapping[str, Any]) -> dict[str, Any]:
    if task == "classification":
        return {name: told[name] for name in ("num_classes", "learning_rates", "blocks", "avgpool") if name in told}
    names = ("num_classes", "align_corners") if task == "segmentation" else (
        "min_depth", "max_depth", "n_bins", "upsample", "align_corners",
    )  # fmt: skip
    return {name: told["decode_head"][name] for name in names if name in told["decode_head"]}


def _scale(task: str, by_type: Mapping[str, Mapping[str, Any]]) -> list[int]:
    if task == "segmentation":
        return list(by_type["Resize"]["scale"])
    if task == "classification":
        crop = by_type["ResizeCenterCrop"]
        return [crop.get("resize", 256), crop.get("crop", 224)]
    return []


def _dataset_meta(runner: Any) -> Mapping[str, Any]:
    loop = getattr(runner, "_train_loop", None)
    dataset = getattr(getattr(loop, "dataloader", None), "dataset", None)
    return getattr(dataset, "metainfo", {})
