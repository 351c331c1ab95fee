"""Names for callables that are used without being registered: ``unregistered:MODULE.QUALNAME``.

The name is a label and nothing is imported for it: it is understood where that callable has been registered since.
"""

from __future__ import annotations

import functools
import inspect
import operator
import pickle
import sys
from collections.abc import Callable
from typing import Any

from .errors import UnknownPluginError
from .registry import NORMALIZERS, UNREGISTERED

__all__ = ["check_picklable", "named", "registered_since"]

Factory = Callable[..., Any]


def named(factory: Factory) -> tuple[str, dict[str, Any], Factory | None]:
    """What a callable normalizer is called in a spec.

    Args:
        factory: a function, a class, another callable, or a ``functools.partial`` of one with keywords.

    Returns:
        Its registered name, the partial's keywords and None; or its label, the keywords and the callable itself.

    Raises:
        ValueError: a partial with positional arguments, which a spec cannot say.
    """
    params: dict[str, Any] = {}
    given: Any = factory
    if isinstance(given, functools.partial):
        if given.args:
            raise ValueError(f"a spec has named parameters only; give those of {given!r} by keyword")
        factory, params = given.func, dict(given.keywords)
    for name in NORMALIZERS:
        if NORMALIZERS.get(name).factory is factory:
            return name, params, None
    return _label(factory), params, factory


def registered_since(label: str, spec: str) -> str:
    """The name under which the callable of this label is registered now.

    Raises:
        UnknownPluginError: it is not, or it is none that its module holds under its name (a lambda).
    """
    for name in NORMALIZERS:
        factory = NORMALIZERS.get(name).factory
        if _label(factory) == label and _held_by_module(factory):
            return name
    raise UnknownPluginError(
        f"in spec {spec!r}: {label!r} was used without being registered, and nothing is imported for it. Register it "
        "with attn_plugins.register_normalizer (--import MODULE names the module that does so), or ask for a "
        "registered name instead (--plugins NAME)"
    )


def check_picklable(factory: Factory) -> None:
    """Raise ``PicklingError`` for a function or class that pickle would not find again."""
    python = inspect.isfunction(factory) or inspect.isclass(factory)
    if python and not _held_by_module(factory):
        raise pickle.PicklingError(
            f"{_label(factory)} cannot be pickled: pickle finds a callable by module and name, and it is not there. "
            "Define it at the top level of a module, or register it with attn_plugins.register_normalizer"
        )


def _label(factory: Factory) -> str:
    if not hasattr(factory, "__qualname__"):
        return f"{_label(type(factory))}()"  # an instance, whose state the label does not tell
    module = getattr(factory, "__module__", None) or "builtins"
    return f"{UNREGISTERED}:{module}.{factory.__qualname__}"


def _held_by_module(factory: Factory) -> bool:
    """Whether pickle would find this very object by its name."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    if module not in sys.modules or name is None:
        return False
    try:
        return operator.attrgetter(name)(sys.modules[module]) is factory
    except AttributeError:
        return False
