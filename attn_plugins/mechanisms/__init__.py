"""Token mechanisms: one file each, applied by ``patch`` under their name in the spec.

A mechanism is a ``Mechanism``; the ViT that it is given tells it where a codebase keeps its norms, MLPs and
projections, ``attn_plugins.swap`` swaps their classes, ``layout`` tells which tokens are [CLS] and which are
patches.
"""

from ..codebases import ViT, find_vits
from ..swap import add_layer
from . import broadcasting, gated, last_vit, registers, specialization
from .base import (
    Mechanism,
    Owned,
    applied_mechanisms,
    as_in_place,
    as_its_trainer_has_it,
    lift_mechanisms,
    plan_mechanisms,
)

__all__ = [
    "Mechanism",
    "Owned",
    "ViT",
    "add_layer",
    "applied_mechanisms",
    "as_in_place",
    "as_its_trainer_has_it",
    "broadcasting",
    "find_vits",
    "gated",
    "last_vit",
    "lift_mechanisms",
    "plan_mechanisms",
    "registers",
    "specialization",
]
