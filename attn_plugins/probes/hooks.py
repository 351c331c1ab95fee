"""Hooks: whose features a head was trained on, whether it fits its data, and what it reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmseg.registry import HOOKS

from ..files import write_text
from .backbone import FrozenViT
from .cache import random_transforms

__all__ = ["BackboneIdentityHook", "ClassCountHook", "ProbeResultHook"]

# The file may have been moved or copied between training and testing; its contents may not have changed.
_MUST_AGREE = ("sha256", "plugins", "layers", "norm", "cls_token")


@HOOKS.register_module()
class BackboneIdentityHook(Hook):
    """Writes the frozen backbone's identity into the probe's checkpoints, and refuses a head of another backbone."""

    def before_train(self, runner: Any) -> None:
        """Refuse cached features where they would hardly ever be used again.

        Raises:
            ValueError: the backbone caches features and the training pipeline is random.
        """
        random = random_transforms(runner.cfg.train_dataloader.dataset.pipeline)
        if _backbone(runner).cache is not None and random:
            raise ValueError(
                f"model.backbone.cache needs images that come again unchanged; the training pipeline has "
                f"{', '.join(random)}. Leave the cache out, or the random transforms"
            )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add `checkpoint["meta"]["backbone"]`."""
        checkpoint["meta"]["backbone"] = _backbone(runner).identity

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint's backbone with the model's.

        Raises:
            ValueError: the head was trained on another backbone, spec, or choice of features.
        """
        theirs = checkpoint.get("meta", {}).get("backbone")
        if theirs is None:
            raise ValueError("this checkpoint does not say which backbone its head belongs to: it is not a probe's")
        own = _backbone(runner).identity
        differ = {key: (theirs.get(key), own[key]) for key in _MUST_AGREE if theirs.get(key) != own[key]}
        if differ:
            told = "; ".join(f"{key}: trained with {was!r}, now {now!r}" for key, (was, now) in differ.items())
            raise ValueError(f"this head belongs to another backbone. {told}. Its file was {theirs['checkpoint']}")


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Refuses a segmentation head with another number of classes than the data set's, before the first iteration."""

    def before_train(self, runner: Any) -> None:
        """Compare with the training set's classes.

        Raises:
            ValueError: they differ.
        """
        self._check(runner, runner.train_dataloader.dataset)

    def before_test(self, runner: Any) -> None:
        """Compare with the test set's classes; errors as `before_train`."""
        self._check(runner, runner.test_dataloader.dataset)

    @staticmethod
    def _check(runner: Any, dataset: Any) -> None:
        has, needs = _model(runner).decode_head.num_classes, len(dataset.metainfo["classes"])
        if has != needs:
            raise ValueError(
                f"the head has {has} classes, {type(dataset).__name__} has {needs}: set model.decode_head.num_classes "
                f"and the pipelines' CheckLabels to {needs}"
            )


@HOOKS.register_module()
class ProbeResultHook(Hook):
    """Keeps `WORK_DIR/probe.json`, which `attn-plugins table` reads: the backbone and every evaluation so far."""

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Add a validation; those that a resumed run repeats are replaced."""
        self._record(runner, "val", runner.iter, metrics)

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Add a test."""
        self._record(runner, "test", 0, metrics)

    def _record(self, runner: Any, split: str, iteration: int, metrics: dict[str, float] | None) -> None:
        if not is_main_process():
            return
        file = Path(runner.work_dir) / "probe.json"
        before = json.loads(file.read_text())["evaluations"] if file.is_file() else []
        kept = [entry for entry in before if entry["split"] != split or entry["iter"] < iteration]
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        record = {
            "probe": runner.cfg.get("probe"),
            "max_iters": runner.cfg.train_cfg.max_iters,
            "backbone": _backbone(runner).identity,
            "evaluations": [*kept, {"split": split, "iter": iteration, "metrics": numbers}],
        }
        write_text(file, json.dumps(record, indent=1))


def _backbone(runner: Any) -> FrozenViT:
    return _model(runner).backbone


def _model(runner: Any) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
