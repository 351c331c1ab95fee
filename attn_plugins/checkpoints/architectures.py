"""From the name of an architecture to a ViT, and to the names that fit a file's tensors: what the codebases say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..codebases import CODEBASES, Builder, Built, Shape

__all__ = ["builder_of", "builders", "construct", "fitting", "told_by"]


def builders() -> dict[str, Builder]:
    """{family: how its architectures are built}."""
    found = [codebase.building for codebase in CODEBASES.values() if codebase.building is not None]
    return {builder.family: builder for builder in found}


def builder_of(called: str) -> Builder | None:
    """How the codebase that tensors told (``Shape.codebase``) is built; None where they do not tell enough."""
    return next((codebase.building for codebase in CODEBASES.values() if codebase.called == called), None)


def construct(arch: str, shape: Shape | None, repo: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> Built:
    """A ViT of a codebase, sized as a checkpoint's tensors are.

    Args:
        arch: ``FAMILY/NAME``, as ``timm/NAME``, ``dinov1/vit_small``, ``dinov2/…``, ``dinov3/…``.
        shape: what the tensors tell; None for the architecture's own sizes.
        repo: checkout of the official repository; None for what the environment names, or timm's own code.
        options: further arguments of the constructor; they win.

    Returns:
        The model, what turns the checkpoint's keys into its own, and all arguments that it was built with.

    Raises:
        ValueError: unknown architecture, or one that cannot have these sizes.
    """
    family, _, name = arch.partition("/")
    known = builders()
    if family not in known:
        names = ", ".join(f"{family}/NAME" for family in known)
        raise ValueError(f"unknown architecture {arch!r}: use transformers/FOLDER, {names}")
    return known[family].build(name, shape, repo, options)


def fitting(tensors: Mapping[str, Tensor], shape: Shape) -> list[str]:
    """The ``FAMILY/NAME``s whose parameters have the names and shapes of a checkpoint's, position embedding aside."""
    return [f"{family}/{name}" for family, known in builders().items() for name in known.fitting(tensors, shape)]


def told_by(config: Mapping[str, Any]) -> tuple[str, Any] | None:
    """(``FAMILY/NAME``, arguments) that a ``config.json`` beside the weights tells; None if it tells none."""
    for family, known in builders().items():
        said = known.told(config)
        if said is not None:
            return f"{family}/{said[0]}", said[1]
    return None
