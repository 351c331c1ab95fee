"""Hooks: whose features a head was trained on, and whether it fits its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop
from mmseg.registry import HOOKS

from .backbone import FrozenViT
from .image_data import CheckLabels
from .ownership import require_same_backbone

__all__ = ["BackboneIdentityHook", "ClassCountHook", "probe_model"]


@HOOKS.register_module()
class BackboneIdentityHook(Hook):
    """Writes the frozen backbone's identity into the probe's checkpoints, and refuses a head of another backbone."""

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add `checkpoint["meta"]["backbone"]`."""
        checkpoint["meta"]["backbone"] = _backbone(runner).identity

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint's backbone with the model's.

        Raises:
            ValueError: the head was trained on another backbone, spec, or choice of features.
        """
        meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
        require_same_backbone(meta.get("backbone") if isinstance(meta, Mapping) else None, _backbone(runner).identity)


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Takes the number of classes from the data set: tells it to `CheckLabels`, and refuses a head with another."""

    def before_run(self, runner: Any) -> None:
        """Compare with the classes of every split that is used, before the first iteration.

        Raises:
            ValueError: the head, or a `CheckLabels(classes=...)`, has another number.
        """
        for role in ("train", "val", "test"):
            loop = getattr(runner, f"_{role}_loop")
            if isinstance(loop, BaseLoop):
                self._check(probe_model(runner), loop.dataloader.dataset)

    @staticmethod
    def _check(model: Any, dataset: Any) -> None:
        has, needs = model.decode_head.num_classes, len(dataset.metainfo["classes"])
        if has != needs:
            raise ValueError(
                f"the head has {has} classes, {type(dataset).__name__} has {needs}: set model.decode_head.num_classes "
                f"to {needs}, or the data set's metainfo to its classes"
            )
        for check in _label_checks(dataset):
            if check.classes not in (None, needs):
                told = f"CheckLabels has classes={check.classes}, {type(dataset).__name__} has {needs}"
                raise ValueError(f"{told}: leave classes= out")
            check.classes = needs


def _label_checks(dataset: Any) -> Iterator[CheckLabels]:
    """Every `CheckLabels` of a data set, through wrappers of data sets and of transforms."""
    inner = getattr(dataset, "datasets", None) or [d for d in [getattr(dataset, "dataset", None)] if d is not None]
    for part in inner:
        yield from _label_checks(part)
    if hasattr(dataset, "pipeline"):
        yield from _checks_in(dataset.pipeline)


def _checks_in(transform: Any) -> Iterator[CheckLabels]:
    if isinstance(transform, CheckLabels):
        yield transform
    parts = getattr(transform, "transforms", getattr(transform, "subroutines", ()))
    for part in parts if isinstance(parts, list | tuple) else [parts]:
        yield from _checks_in(part)


def probe_model(runner: Any) -> Any:
    """The probe itself, without what DDP or test-time augmentation put around it."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _backbone(runner: Any) -> FrozenViT:
    return probe_model(runner).backbone
