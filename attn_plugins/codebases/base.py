"""What an adapter is, and what the record of a codebase is: everything that is asked about one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import swap
from ..registry import ADAPTERS, Registry
from ..swap import PREFIX, Overrides
from .answer import NORMALIZER
from .parts import Builder, Features, Parts, StateDict
from .proof import answered, proved, proved_on

__all__ = [
    "CODEBASES",
    "NORMALIZER",
    "PREFIX",
    "Adapter",
    "Codebase",
    "Container",
    "Layer",
    "adapter_for",
    "head_dim",
    "register_adapter",
    "register_codebase",
]


SPEC = PREFIX + "spec"
"""Attribute of a patched layer: its spec, as its record says it."""
WHOLE = PREFIX + "whole_spec"
"""Attribute of a patched layer of a model whose spec says something for each layer: that spec."""


def _no_check(module: nn.Module) -> None:
    return None


def heads_attribute(module: nn.Module) -> int | None:
    """Number of heads, from the attribute names in use (timm, DINO, transformers, torch)."""
    for name in ("num_heads", "num_attention_heads", "n_heads", "heads"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    return None


def head_dim(module: nn.Module) -> int | None:
    """Channels of a head's query, from the attribute names in use, or from the projections that make it."""
    for name in ("head_dim", "attention_head_size"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    heads = heads_attribute(module)
    for name, parts in (("qkv", 3), ("q_proj", 1), ("query", 1), ("q", 1), ("to_q", 1)):
        width = getattr(getattr(module, name, None), "out_features", None)
        if isinstance(width, int) and heads:
            return width // parts // heads
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
            normalizer in ``self.attn_plugins_normalizer`` and call ``attn_plugins.attention``; a ``forward``
            during which that is never called raises.
        check: raises ``UnsupportedModelError`` for a module that has an option the adapter cannot honour.
        num_heads: number of heads of a module, or None; asked for only by learnable normalizers.
        around: modules above the attention that are patched with it.
        finds: for adapters that read what an instance's code does: the methods whose attention calls are to be
            answered, none where there is no attention. ``matches`` and ``overrides`` are not asked then.
        may_skip: whether a forward of it may compute no attention, for a reason that its adapter states.
    """

    name: str
    matches: Callable[[type], bool]
    overrides: Overrides
    check: Callable[[nn.Module], None] = _no_check
    num_heads: Callable[[nn.Module], int | None] = heads_attribute
    around: tuple[Container, ...] = ()
    finds: Callable[[nn.Module], tuple[str, ...]] | None = None
    may_skip: bool = False


@dataclass(frozen=True)
class Layer:
    """The class layer that an adapter puts on a module; pickled by these names.

    Attributes:
        adapter: the adapter's name.
        container: which of its containers this is for; None for the attention itself.
        methods: whose calls are answered, of adapters that find them.
    """

    adapter: str
    container: int | None = None
    methods: tuple[str, ...] = ()

    @property
    def made_by(self) -> Adapter:
        """The adapter that has the name now."""
        CODEBASES.values()  # as in `adapter_for`
        adapter: Adapter = ADAPTERS.get(self.adapter)
        return adapter

    def __call__(self, base: Any) -> dict[str, Any]:
        adapter = self.made_by
        if self.container is not None:
            return adapter.around[self.container].overrides(base)
        if adapter.finds is None:
            made = adapter.overrides(base)
        else:
            made = {name: answered(getattr(base, name)) for name in self.methods}
        if not adapter.may_skip and callable(getattr(base, "forward", None)):
            made["forward"] = proved(made.get("forward", base.forward))
            made["__setattr__"] = _proving_setattr(base)
        return made


def _proving_setattr(base: Any) -> Callable[[Any, str, Any], None]:
    """A forward that is set on the instance (accelerate's hooks, a monkey patch) hides the class's: prove it too."""

    def set_attribute(self: Any, name: str, value: Any) -> None:
        base.__setattr__(self, name, proved_on(self, value) if name == "forward" and callable(value) else value)

    return set_attribute


def register_adapter(adapter: Adapter) -> Adapter:
    """Make an adapter known; of several that match a class, the one registered last is used.

    Args:
        adapter: how attention of some class is patched; ``describe`` shows its name.

    Returns:
        The same record.

    Raises:
        ValueError: the name is taken.
    """
    ADAPTERS.register(adapter.name, adapter)
    return adapter


def adapter_for(module: nn.Module) -> tuple[Adapter, Layer] | None:
    """The adapter for a module and the class layer that it puts on it, or None."""
    CODEBASES.values()  # of installed packages too, whose adapters join the rest
    cls = swap.bare(module)
    for adapter in reversed(ADAPTERS.values()):
        if adapter.finds is not None:
            methods = adapter.finds(module)
            if methods:
                return adapter, Layer(adapter.name, methods=methods)
        elif adapter.matches(cls):
            return adapter, Layer(adapter.name)
    return None


@dataclass(frozen=True)
class Codebase:
    """All that is asked about one codebase; what it leaves out is not done for its models.

    Attributes:
        name: for messages.
        adapters: how its attention is patched, the most general first; most attention needs none of its own
            (``generic``).
        vits: kinds of its ViTs, for token mechanisms; of several that know one, the first is used.
        features: where features are read.
        state: what the keys of its checkpoints are called.
        building: how a model is built to fit a checkpoint.
        constructor: names that occur in the constructors of its ViTs, by which the launcher notices one as it is
            built; empty for no notice.
    """

    name: str
    adapters: tuple[Adapter, ...] = ()
    vits: tuple[Parts, ...] = ()
    features: Features | None = None
    state: StateDict | None = None
    building: Builder | None = None
    constructor: tuple[str, ...] = ()

    @property
    def called(self) -> str:
        """What ``identify`` calls it."""
        return (self.state.called if self.state else "") or self.name


def _with_adapters(codebase: Codebase) -> Codebase:
    for adapter in codebase.adapters:
        if _named(adapter) is not adapter:
            register_adapter(adapter)
    return codebase


def _named(adapter: Adapter) -> Adapter | None:
    # Not by `in`, which loads installed packages: they import this one, which is not complete yet.
    return ADAPTERS._entries.get(adapter.name.lower())


CODEBASES: Registry[Codebase] = Registry("codebase", "attn_plugins.codebases", _with_adapters)
"""The most general first: where several know a model, the last one is used."""


def register_codebase(codebase: Codebase) -> Codebase:
    """Make a codebase known, and with it its adapters; of several that know a model, the last one is used.

    Packages may name a ``Codebase`` in the entry-point group ``attn_plugins.codebases`` instead.

    Args:
        codebase: all that is asked about it.

    Returns:
        The same record.

    Raises:
        ValueError: its name, or that of an adapter, is taken.
    """
    taken = [adapter.name for adapter in codebase.adapters if _named(adapter) is not None]
    if taken:
        raise ValueError(f"{codebase.name} brings the adapters {taken}, whose names are taken; choose others")
    CODEBASES.register(codebase.name, codebase)
    return _with_adapters(codebase)
