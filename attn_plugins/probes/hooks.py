"""Hooks: whose features a head was trained on, and whether it fits its data."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmseg.registry import HOOKS

from .backbone import FrozenViT

__all__ = ["BackboneIdentityHook", "ClassCountHook"]

# The file may have been moved or copied between training and testing; its contents may not have changed.
_MUST_AGREE = ("sha256", "plugins", "layers", "norm", "cls_token")


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


def _backbone(runner: Any) -> FrozenViT:
    return _model(runner).backbone


def _model(runner: Any) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
