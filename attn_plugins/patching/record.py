"""A patched model's state dict tells its spec, so that a bare ``torch.save(model.state_dict())`` does too.

PyTorch keeps a ``_metadata`` mapping beside a state dict's tensors (module versions live there). It is
pickled with the state dict and survives ``weights_only`` loading; it adds no key, so a strict load elsewhere
still works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..spec import Spec

__all__ = ["METADATA_KEY", "STAMP", "refuse_others", "spec_of", "stamp", "unstamp"]

METADATA_KEY = "attn_plugins"
"""What a spec is filed under: in a state dict's ``_metadata``, in our files, in DINO's args and configs."""

STAMP = "attn_plugins_stamp"


def stamp(model: nn.Module, spec: Spec, layers: Sequence[str | None]) -> None:
    """Make ``model.state_dict()`` tell what the model is patched with; follows it through deepcopy, DDP and
    FSDP.

    Args:
        model: the model that was patched.
        spec: what with.
        layers: the normalizer of each attention layer, in order; None where the layer is not patched.
    """
    record: dict[str, Any] = {"spec": str(spec)}
    if len(set(layers)) > 1:
        record["layers"] = list(layers)
    setattr(model, STAMP, record)
    if _write not in model._state_dict_hooks.values():
        model.register_state_dict_post_hook(_write)


def unstamp(module: nn.Module) -> None:
    """Take the hook of :func:`stamp` away; the record goes with the other attributes of the patch."""
    for handle, hook in list(module._state_dict_hooks.items()):
        if hook is _write:
            del module._state_dict_hooks[handle]


def spec_of(model: nn.Module) -> str | None:
    """The canonical spec that ``model``, or the model inside it, is patched with; None if it is not patched."""
    stamps = (getattr(module, STAMP, None) for module in model.modules())
    return next((record["spec"] for record in stamps if record), None)


def refuse_others(model: nn.Module) -> None:
    """Make ``model.load_state_dict()`` refuse weights whose metadata tells another spec than the model's.

    Raises:
        ValueError: from ``load_state_dict``, before any parameter of the model has changed.
    """
    model.register_load_state_dict_pre_hook(_check)


def _write(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    record = getattr(module, STAMP, None)
    if record is not None:
        local_metadata[METADATA_KEY] = record


def _check(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *_: Any) -> None:
    theirs, own = local_metadata.get(METADATA_KEY), getattr(module, STAMP, {"spec": "softmax"})
    if theirs is not None and theirs != own:
        raise ValueError(
            f"these weights were trained with attn_plugins {theirs} and this {type(module).__name__} has "
            f"{own}: "
            f"they mean something only with their own attention. Patch it with {theirs['spec']!r}."
        )
