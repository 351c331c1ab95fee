"""What an adapter is, and how a module's class is swapped for its patched subclass."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..registry import ADAPTERS

__all__ = [
    "Adapter",
    "adapter_for",
    "code_names",
    "never",
    "patched_class",
    "register_adapter",
    "unpatched_class",
]


def never(cls: type) -> bool:
    return False


def _no_check(module: nn.Module) -> None:
    return None


def heads_attribute(module: nn.Module) -> int | None:
    """Number of heads, from the attribute names in use (timm, DINO, transformers, torch)."""
    for name in ("num_heads", "num_attention_heads", "n_heads", "heads"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    return None


@dataclass(frozen=True)
class Adapter:
    """How one kind of attention module is patched.

    Attributes:
        name: shown by ``describe``.
        matches: tells from a module's class whether this adapter knows it.
        overrides: methods of the patched subclass, made from the original class. They find this layer's
            normalizer in ``self.attn_plugins_normalizer`` and call :func:`attn_plugins.attention`.
        check: raises ``UnsupportedModelError`` for a module that has an option the adapter cannot honour.
        num_heads: number of heads of a module, or None; asked for only by learnable normalizers.
        parent: what to patch around it, where the module that holds the attention has a say (a block that is
            asked for the map); used if ``parent_matches`` knows that module's class. The attention then has
            ``self.attn_plugins_in_block = True``.
    """

    name: str
    matches: Callable[[type], bool]
    overrides: Callable[[type], dict[str, Any]]
    check: Callable[[nn.Module], None] = _no_check
    num_heads: Callable[[nn.Module], int | None] = heads_attribute
    parent: Adapter | None = None
    parent_matches: Callable[[type], bool] = never


def register_adapter(adapter: Adapter) -> Adapter:
    """Make an adapter known; of several that match a class, the one registered last is used.

    Raises:
        ValueError: the name is taken.
    """
    ADAPTERS.register(adapter.name, adapter)
    adapter_for.cache_clear()
    return adapter


@functools.cache
def adapter_for(cls: type) -> Adapter | None:
    """The adapter for modules of class ``cls``, or None."""
    return next((adapter for adapter in reversed(ADAPTERS.values()) if adapter.matches(cls)), None)


def code_names(function: Any) -> set[str]:
    """Names that a Python function's own code refers to; empty for anything else."""
    function = getattr(function, "__wrapped__", function)
    return set(function.__code__.co_names) if isinstance(function, types.FunctionType) else set()


@functools.cache
def patched_class(base: type, adapter: Adapter) -> type:
    """Subclass of ``base`` with the adapter's overrides; isinstance, state_dict and attributes stay as they were."""
    namespace = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce_ex,
        "_attn_plugins_base": base,
        "_attn_plugins_adapter": adapter,
        **adapter.overrides(base),
    }
    return type(f"Patched{base.__name__}", (base,), namespace)


def unpatched_class(cls: type) -> type:
    """The class that ``cls`` was made from, or ``cls`` itself."""
    return cls.__dict__.get("_attn_plugins_base", cls)


def _reduce_ex(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    # The subclass is made at run time, so pickle and deepcopy go by what it is made from.
    cls = type(self)
    return _rebuild, (cls._attn_plugins_base, cls._attn_plugins_adapter.name), self.__getstate__()


def _rebuild(base: type, adapter_name: str) -> nn.Module:
    cls = patched_class(base, ADAPTERS.get(adapter_name))
    return cls.__new__(cls)
