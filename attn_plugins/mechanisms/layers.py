"""Class layers: a module's class swapped for a subclass, over what attention adapters did, and lifted off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..codebases.base import PREFIX, unpatched_class

__all__ = ["LAYOUT", "Overrides", "add_layer", "lift"]

Overrides = Callable[[type], dict[str, Any]]
"""A module-level function from a class to the methods of its subclass; it is pickled by its name."""

_LAYER = "_attn_plugins_layer"
LAYOUT = PREFIX + "layout"


def add_layer(module: nn.Module, overrides: Overrides) -> None:
    """Swap the class of ``module`` for a subclass with ``overrides(class)``; parameters, hooks, isinstance stay."""
    module.__class__ = _layered(type(module), overrides)


def lift(module: nn.Module) -> None:
    """Take every layer off again."""
    while _LAYER in vars(type(module)):
        below: Any = type(module).__base__
        module.__class__ = below


def _layered(base: type, overrides: Overrides) -> type:
    # Found among the subclasses and not in a cache, which would keep classes alive for ever.
    subclasses: list[type] = type.__subclasses__(base)
    for cls in subclasses:
        if vars(cls).get(_LAYER) is overrides:
            return cls
    namespace = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce_ex,
        "_attn_plugins_base": unpatched_class(base),
        _LAYER: overrides,
        **overrides(base),
    }
    metaclass: Any = type(base)
    return metaclass(base.__name__, (base,), namespace)


def _reduce_ex(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    # Layers are made at run time, so pickle and deepcopy go by what they are made from.
    layers: list[Overrides] = []
    cls: Any = type(self)
    while _LAYER in vars(cls):
        layers.append(vars(cls)[_LAYER])
        cls = cls.__base__
    if "_attn_plugins_base" in vars(cls):  # a class that an adapter made, which knows how to be made again
        make, arguments, _ = cls.__reduce_ex__(self, protocol)
    else:
        make, arguments = _blank, (cls,)
    return _rebuild, (make, arguments, tuple(reversed(layers))), self.__getstate__()


def _blank(cls: Any) -> Any:
    return cls.__new__(cls)


def _rebuild(make: Callable[..., Any], arguments: tuple[Any, ...], layers: tuple[Overrides, ...]) -> Any:
    module = make(*arguments)
    for overrides in layers:
        module.__class__ = _layered(type(module), overrides)
    return module
