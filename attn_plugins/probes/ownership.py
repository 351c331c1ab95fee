"""A head knows whose features it was trained on, and is refused on others', however it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmseg.registry import HOOKS
from torch import Tensor

from ..results import backbone_differences
from .backbone import FrozenViT

__all__ = [
    "BackboneIdentityHook",
    "OwnedHead",
    "SizedHead",
    "identity_inside",
    "joined",
    "probe_model",
    "require_same_backbone",
]


def require_same_backbone(theirs: Any, own: Mapping[str, Any]) -> None:
    """Compare the backbone that a head was trained on with the one that is here.

    Args:
        theirs: the identity that came with the head; None where there is none.
        own: the identity of the ``FrozenViT``.

    Raises:
        ValueError: the head was trained on another backbone, spec, or choice of features, or says nothing of it.
    """
    if not isinstance(theirs, Mapping):
        raise ValueError("this checkpoint does not say which backbone its head belongs to: it is not a probe's")
    if bool(theirs.get("tuned")) != bool(own.get("tuned")):
        raise ValueError(
            "this head was trained together with its backbone, which its file holds: attn_plugins.probes.load(FILE)"
            if theirs.get("tuned")
            else "this head was trained on a frozen backbone, and this config trains it: leave --finetune out"
        )
    if not any(key in theirs and key in own for key in ("digest", "sha256")):
        raise ValueError(f"this checkpoint does not say which backbone its head belongs to: it tells {dict(theirs)}")
    differ = backbone_differences({**dict.fromkeys(("plugins", "layers", "norm", "cls_token")), **theirs}, own)
    if differ:
        told = "; ".join(f"{key}: trained with {was!r}, now {now!r}" for key, (was, now) in differ.items())
        raise ValueError(
            f"this head belongs to another backbone. {told}. Its file was {theirs.get('checkpoint')}; give that as "
            "model.backbone.checkpoint"
        )


def identity_inside(state: Any) -> Any:
    """What the bytes of ``OwnedHead.get_extra_state`` say.

    Raises:
        ValueError: they are damaged.
    """
    try:
        return json.loads(bytes(state.cpu().to(torch.uint8).tolist()))
    except (ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"this checkpoint's record of its backbone is damaged: {error}") from error


class OwnedHead:
    """Mixin of a model over a ``FrozenViT`` in ``backbone``: its state dict holds the backbone's identity, as bytes.

    So ``load_state_dict``, mmseg's ``init_model`` and ``MMSegInferencer`` and mmengine's runner all compare it, before
    a weight is changed.
    """

    backbone: Any

    def get_extra_state(self) -> Tensor:
        """The identity as JSON in a uint8 tensor: it survives what tensors survive."""
        return torch.frombuffer(bytearray(json.dumps(self.backbone.told()).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Compare; see ``require_same_backbone``."""
        require_same_backbone(identity_inside(state), self.backbone.identity)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if state_dict and f"{prefix}_extra_state" not in state_dict:
            note = "this head was written by an earlier release: only mmengine's runner can tell whose backbone it fits"
            print_log(note, logger="current", level=30)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


class SizedHead:
    """The head takes its input channels from the backbone."""

    backbone: Any

    def _init_decode_head(self, decode_head: Any) -> None:
        super()._init_decode_head({"in_channels": self.backbone.channels, **decode_head})  # type: ignore[misc]


def joined(in_channels: Sequence[int]) -> dict[str, Any]:
    """What mmseg's ``BaseDecodeHead`` is told for a head of all maps, resized to the first, that drops nothing."""
    return {
        "in_channels": list(in_channels),
        "channels": sum(in_channels),
        "in_index": list(range(len(in_channels))),
        "input_transform": "resize_concat",
        "dropout_ratio": 0,
    }


@HOOKS.register_module()
class BackboneIdentityHook(Hook):
    """Writes the frozen backbone's identity into the probe's checkpoints, and refuses a head of another backbone."""

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add ``checkpoint["meta"]["backbone"]``."""
        checkpoint["meta"]["backbone"] = _backbone(runner).identity

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Compare the checkpoint's backbone with the model's.

        Raises:
            ValueError: the head was trained on another backbone, spec, or choice of features.
        """
        meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
        require_same_backbone(meta.get("backbone") if isinstance(meta, Mapping) else None, _backbone(runner).identity)


def probe_model(runner: Any) -> Any:
    """The probe itself, without what DDP or test-time augmentation put around it."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _backbone(runner: Any) -> FrozenViT:
    backbone: FrozenViT = probe_model(runner).backbone
    return backbone
