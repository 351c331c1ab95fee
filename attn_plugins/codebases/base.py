"""What an adapter is, and how a module's class is swapped for its patched subclass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..registry import ADAPTERS

__all__ = ["Adapter", "Container", "adapter_for", "patched_class", "register_adapter", "unpatched_class"]

Overrides = Callable[[type], dict[str, Any]]

PREFIX = "attn_plugins_"
"""Of every attribute and submodule that a patch adds to a module."""
NORMALIZER = PREFIX + "normalizer"


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
class Container:
    """A module around the attention that has a say in how it runs (a block that is asked for the map).

    Attributes:
        matches: tells from a class whether this is it.
        overrides: methods of its patched subclass, made from the original class.
    """

    matches: Callable[[type], bool]
    overrides: Overrides


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
        around: modules above the attention that are patched with it.
    """

    name: str
    matches: Callable[[type], bool]
    overrides: Overrides
    check: Callable[[nn.Module], None] = _no_check
    num_heads: Callable[[nn.Module], int | None] = heads_attribute
    around: tuple[Container, ...] = ()


def register_adapter(adapter: Adapter) -> Adapter:
    """Make an adapter known; of several that match a class, the one registered last is used.

    Raises:
        ValueError: the name is taken.
    """
    return ADAPTERS.register(adapter.name, adapter)


def adapter_for(cls: type) -> Adapter | None:
    """The adapter for modules of class ``cls``, or None."""
    return next((adapter for adapter in reversed(ADAPTERS.values()) if adapter.matches(cls)), None)


def patched_class(base: type, adapter: Adapter, container: Container | None = None) -> type:
    """Subclass of ``base`` with the overrides of ``adapter``, or of one of its containers.

    isinstance, state_dict, attributes and the class's name stay as they were: FSDP wrapping policies and
    transformers go by the name.
    """
    made_by = (adapter.name, None if container is None else adapter.around.index(container))
    # Found among the subclasses and not in a cache, which would keep classes alive for ever.
    subclasses: list[type] = type.__subclasses__(base)
    for made in subclasses:
        if vars(made).get("_attn_plugins_made_by") == made_by:
            return made
    namespace = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce_ex,
        "_attn_plugins_base": base,
        "_attn_plugins_made_by": made_by,
        **(adapter if container is None else container).overrides(base),
    }
    metaclass: Any = type(base)
    return metaclass(base.__name__, (base,), namespace)


def unpatched_class(cls: type) -> type:
    """The class that ``cls`` was made from, or ``cls`` itself."""
    return cls.__dict__.get("_attn_plugins_base", cls)


def _reduce_ex(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    # The subclass is made at run time, so pickle and deepcopy go by what it is made from.
    cls: Any = type(self)
    return _rebuild, (cls._attn_plugins_base, *cls._attn_plugins_made_by), self.__getstate__()


def _rebuild(base: type, adapter_name: str, container: int | None) -> nn.Module:
    adapter = ADAPTERS.get(adapter_name)
    cls: Any = patched_class(base, adapter, None if container is None else adapter.around[container])
    return cls.__new__(cls)
