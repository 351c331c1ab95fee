"""Hooks: what a probe's checkpoint says about its backbone."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmseg.registry import HOOKS

from .backbone import FrozenViT

__all__ = ["BackboneIdentityHook"]

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
            raise ValueError(f"this head belongs to another backbone. {told}. Its checkpoint was {theirs['checkpoint']}")


def _backbone(runner: Any) -> FrozenViT:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    # Test-time augmentation wraps the model once more.
    return getattr(model, "backbone", None) or model.module.backbone
