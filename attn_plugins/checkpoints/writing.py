"""Write checkpoints whole or not at all, with their spec inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import written
from ..patching.record import METADATA_KEY, spec_of
from .huggingface import config_of

__all__ = ["save"]


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    arch: str | None = None,
    arch_options: dict[str, Any] | None = None,
    **extra: Any,
) -> Path:
    """Write a model's weights and the spec that it is patched with, for ``identify`` and ``load_backbone``.

    The file appears under its name only when it is complete: a reader or a killed job never sees half of it.

    Args:
        path: where to.
        model: the backbone, patched or not.
        arch: how the model is built, as the probes name it (``timm/vit_tiny_patch16_224``), for models that
            their tensors do not identify. A model of transformers is told by its config, which is kept in the file.
        arch_options: what the constructor was given besides (``{"depth": 4}``).
        extra: further top-level entries: tensors, numbers, strings, lists and dicts of them.

    Returns:
        The path.

    Raises:
        ValueError: ``extra`` uses a name that the format has taken.
    """
    taken = extra.keys() & {"model", METADATA_KEY}
    if taken:
        raise ValueError(f"{sorted(taken)} cannot name extra entries: the format uses them. Rename them.")
    path = Path(path)
    built: dict[str, Any] = {"arch": arch, "arch_options": arch_options or {}} if arch else {}
    config = config_of(model)
    if config is not None:
        built["config"] = config
    contents = {
        "model": model.state_dict(),
        METADATA_KEY: {"spec": spec_of(model) or "softmax", **built},
        **extra,
    }
    with written(path) as partial, partial.open("wb") as file:  # opened here, or the name would be in the contents
        torch.save(contents, file)
    return path
