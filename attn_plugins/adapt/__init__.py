"""A pretrained backbone becomes sparse.

``calibrate`` fits a factor on the scores of every head, in seconds; ``attn_plugins.adapt.distil`` trains the
patched backbone to have the features that it had, on pictures without labels.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distilling import Distilled, distil
    from .recipe import Recipe

__all__ = ["Distilled", "Recipe", "distil"]

_PLACES = {"Distilled": "distilling", "distil": "distilling", "Recipe": "recipe"}


def __getattr__(name: str) -> Any:
    """What needs more than torch is imported when it is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
