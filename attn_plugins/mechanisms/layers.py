"""What pickles of release 0.1 name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..swap import Overrides, add_layer
from .layout import LAYOUT

__all__ = ["LAYOUT", "Overrides", "_blank", "_rebuild", "add_layer"]


def _blank(cls: Any) -> Any:
    return cls.__new__(cls)


def _rebuild(make: Callable[..., Any], arguments: tuple[Any, ...], layers: tuple[Overrides, ...]) -> Any:
    """A module that ``make(*arguments)`` gives, with the class layers of mechanisms over it."""
    module = make(*arguments)
    for overrides in layers:
        add_layer(module, overrides)
    return module
