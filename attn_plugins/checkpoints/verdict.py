"""What a backbone that was built computes, tried once: for results that are told of it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from ..codebases.features import ViTFeatures
from ..patching import spec_of
from ..patching.verify import Verification, verify_run

__all__ = ["verdict", "verified"]

_SIDE = 4
"""Patches in a row of the picture of noise that a model is shown: every layer runs as on any other size."""


def verified(model: nn.Module) -> Verification | None:
    """Show a ViT a small picture of noise and say what every patched layer did; None for one that is not patched.

    Args:
        model: a ViT that ``attn_plugins.codebases.features.ViTFeatures`` reads.

    Raises:
        UnsupportedModelError: a patched layer computed no attention that could be answered.
        ValueError: a patch was lost.
    """
    if spec_of(model) is None:
        return None
    vit = ViTFeatures(model)
    weight = next(model.parameters())
    noise = torch.rand(1, 3, *(2 * [_SIDE * vit.patch_size]), generator=torch.Generator().manual_seed(0))
    images = noise.to(weight.device, weight.dtype)
    return verify_run(model, lambda: vit(images, [vit.depth - 1]))


def verdict(model: nn.Module, what: str) -> dict[str, Any] | None:
    """The same as JSON can hold it, for a result file.

    Warns:
        UserWarning: the model does not compute what it says; the warning names ``what``, and the result says it too.
    """
    found = verified(model)
    if found is None:
        return None
    if not found.ok:
        warnings.warn(f"{what} does not compute {found.spec}: {'; '.join(found.problems)}", stacklevel=2)
    return found.record()
