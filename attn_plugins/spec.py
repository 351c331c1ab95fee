"""Spec strings: ``"entmax15+registers:num=4"`` to objects and back.

Grammar: ``name[@layers][:key=value[,key=value]]``, joined with ``+``; one normalizer a layer, any number of mechanisms.
The same string is used in Python, trainer flags, YAML, mmseg configs, checkpoint metadata and result tables.

``entmax15@6-11`` is entmax15 in the attention layers 6 to 11, counted from 0 as ``attn_plugins.describe`` lists
them; the others keep their own softmax. ``sparsemax@0-2/9-11+entmax15@3-8`` gives each its own.
``entmax:alpha=1.1..1.5`` has a value for every layer, evenly from the first to the last of those that the name is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from .by_layer import Ramp, format_layers, read_layers
from .errors import UnknownPluginError
from .params import Value, check_params, format_value, plain_params, read_value
from .registry import MECHANISMS, NORMALIZERS, UNREGISTERED
from .unregistered import check_picklable, named, registered_since

__all__ = ["Plugin", "Spec", "computed", "parse", "settled"]

Factory = Callable[..., Any]
"""A callable normalizer: ``f(scores, dim=-1) -> weights``, or a module class called as ``cls(num_heads=H)``."""


@dataclass(frozen=True)
class Plugin:
    """One name of a spec with its parameters, e.g. ``registers:num=4``.

    Attributes:
        name: as it is registered; ``unregistered:MODULE.QUALNAME`` of a callable that is not.
        params: names and values, sorted.
        factory: that callable; None for what is registered.
        layers: indices of the attention layers that it is for, sorted; empty for all of them.
    """

    name: str
    params: tuple[tuple[str, Value], ...] = ()
    factory: Factory | None = field(default=None, repr=False)
    layers: tuple[int, ...] = ()

    @property
    def kwargs(self) -> dict[str, Value]:
        return dict(self.params)

    @property
    def by_layer(self) -> bool:
        """Whether it means something only for a model's layers, one by one."""
        return bool(self.layers) or any(isinstance(value, Ramp) for _, value in self.params)

    def at(self, index: int, count: int) -> Plugin:
        """What layer ``index`` of the ``count`` that it is for gets."""
        params = [(key, value.at(index, count) if isinstance(value, Ramp) else value) for key, value in self.params]
        return Plugin(self.name, tuple(params), self.factory)

    def having(self, params: Mapping[str, Value]) -> Plugin:
        """The same with other parameters."""
        return Plugin(self.name, tuple(sorted(params.items())), self.factory, self.layers)

    def __str__(self) -> str:
        name = f"{self.name}@{format_layers(self.layers)}" if self.layers else self.name
        if not self.params:
            return name
        return name + ":" + ",".join(f"{key}={format_value(value)}" for key, value in self.params)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plugin:
        return self  # nothing in it changes, and copying asks for less than pickling

    def __reduce__(self) -> tuple[Any, ...]:
        if self.factory is not None:
            check_picklable(self.factory)
        return Plugin, (self.name, self.params, self.factory, self.layers)


@dataclass(frozen=True)
class Spec:
    """A parsed spec: a normalizer (``softmax`` if none was named), or several with layers of their own, and mechanisms.

    ``Spec.of("entmax", alpha=1.3) + Spec.of("registers", num=4)`` is ``parse("entmax:alpha=1.3+registers:num=4")``.

    Attributes:
        normalizers: the row normalizer; or several, each for its own layers, in their order.
        mechanisms: token mechanisms, sorted by name, so that equal specs compare equal.
    """

    normalizers: tuple[Plugin, ...] = (Plugin("softmax"),)
    mechanisms: tuple[Plugin, ...] = ()

    @property
    def normalizer(self) -> Plugin:
        """The one normalizer of all layers.

        Raises:
            ValueError: it differs from layer to layer; ``for_layers`` tells.
        """
        if self.by_layer:
            raise ValueError(f"{str(self)!r} says something for each layer of a model; here one normalizer applies")
        return self.normalizers[0]

    @property
    def by_layer(self) -> bool:
        """Whether layers are named, or values differ from layer to layer."""
        return any(plugin.by_layer for plugin in self.normalizers)

    @property
    def names_layers(self) -> bool:
        """Whether layers are named: those that are not keep the model's own attention."""
        return any(plugin.layers for plugin in self.normalizers)

    def for_layers(self, count: int) -> list[Plugin | None]:
        """The normalizer of each of ``count`` attention layers; None for those that are not named.

        Raises:
            ValueError: a layer is named that there is not.
        """
        found: list[Plugin | None] = [None] * count
        for plugin in self.normalizers:
            beyond = [index for index in plugin.layers if index >= count]
            if beyond:
                raise ValueError(
                    f"spec {str(self)!r} names layer {format_layers(beyond)}, and there are {count} attention layers: "
                    f"0-{count - 1}"
                )
            own = plugin.layers or range(count)
            for place, index in enumerate(own):
                found[index] = plugin.at(place, len(own))
        return found

    @classmethod
    def of(cls, plugin: str | Factory, /, **params: Value) -> Spec:
        """The spec of one plugin.

        Args:
            plugin: a registered name, with ``@layers`` if it is for some; or a callable as ``attn_plugins.patch``
                takes it.
            params: its parameters; what a spec string can say: bool, int, float or str (``"1.1..1.5"`` too).

        Raises:
            UnknownPluginError: the name is not registered.
            ValueError: a parameter is unknown, missing, of another type than its default, or nothing that a spec
                string can say.
        """
        if isinstance(plugin, str):
            if set(plugin) & set("+:,="):
                raise ValueError(f"Spec.of takes one name, not {plugin!r}; a whole spec string is attn_plugins.parse's")
            name, layers = _named_layers(plugin, plugin)
            made = Plugin(name.lower(), plain_params(plugin, params), layers=layers)
        elif isinstance(bound := getattr(plugin, "plugin", None), Plugin) and not hasattr(plugin, "parameters"):
            made = bound  # of a Normalizer, whose parameters are bound; a module with parameters is a layer's own
        else:
            label, bound, factory = named(plugin)
            made = Plugin(label, plain_params(label, bound | params), factory)
        return _assemble([made], str(made))

    def __add__(self, other: Spec) -> Spec:
        """Both together; ``softmax`` is what a spec has that names no normalizer, and gives way.

        Raises:
            ValueError: two normalizers for the same layer, or the same mechanism twice.
        """
        if not isinstance(other, Spec):
            return NotImplemented
        normalizers = [p for spec in (self, other) for p in spec.normalizers if p != Plugin("softmax")]
        return _assemble([*normalizers, *self.mechanisms, *other.mechanisms], f"{self}+{other}")

    def __str__(self) -> str:
        mechanisms = [str(plugin) for plugin in self.mechanisms]
        if mechanisms and self.normalizers == (Plugin("softmax"),):
            return "+".join(mechanisms)
        return "+".join([*map(str, self.normalizers), *mechanisms])


def parse(spec: str | Spec | Factory) -> Spec:
    """Read a spec string and check every name and parameter against the registries.

    Args:
        spec: e.g. ``"entmax15"``, ``"entmax:alpha=1.3+registers:num=4"``, names in any case; a ``Spec`` is
            returned as it is; a callable normalizer (see ``attn_plugins.patch``) becomes the spec of its
            registered name, or ``unregistered:MODULE.QUALNAME``. Such a string is read only where that callable has
            been registered since: nothing is ever imported for it.

    Returns:
        The parsed spec; ``str()`` of it is the canonical form, names in lower case.

    Raises:
        UnknownPluginError: a name is not registered.
        ValueError: bad grammar, two normalizers for the same layer, layers of a mechanism, the same mechanism twice, or
            a parameter that is unknown, missing or of another type than its default.
    """
    if isinstance(spec, Spec):
        return spec
    if callable(spec):
        return Spec.of(spec)
    if not isinstance(spec, str):
        raise ValueError(
            "a spec is a string such as 'entmax15+registers:num=4', or a callable (scores, dim=-1) -> weights, not "
            f"{type(spec).__name__}: {spec!r}"
        )
    return _assemble([_parse_plugin(part.strip(), spec) for part in spec.split("+")], spec)


def settled(spec: Spec, *, new: bool) -> Spec:
    """A spec in which every mechanism says what it means (``Mechanism.settled``).

    Args:
        spec: as it was read.
        new: whether it is of a patch that is made now; otherwise of a file.

    Raises:
        ValueError: parameters contradict each other.
    """

    def said(plugin: Plugin) -> Plugin:
        settle = getattr(MECHANISMS.get(plugin.name), "settled", None)
        return plugin if settle is None else plugin.having(settle(plugin.kwargs, new=new))

    return Spec(spec.normalizers, tuple(map(said, spec.mechanisms)))


def computed(spec: Spec) -> Spec:
    """A spec without what says only how a mechanism's parameters start and are trained (``Mechanism.training_only``).

    Models whose specs are equal so compute the same with the same weights.
    """

    def kept(plugin: Plugin) -> Plugin:
        left_out = getattr(MECHANISMS.get(plugin.name), "training_only", ())
        return plugin.having({name: value for name, value in plugin.params if name not in left_out})

    return Spec(spec.normalizers, tuple(map(kept, spec.mechanisms)))


def _assemble(plugins: Sequence[Plugin], spec: str) -> Spec:
    normalizers: list[Plugin] = []
    mechanisms: dict[str, Plugin] = {}
    for plugin in plugins:
        if plugin.factory is not None or plugin.name in NORMALIZERS:
            factory = NORMALIZERS.get(plugin.name).factory if plugin.factory is None else plugin.factory
            check_params(plugin.name, plugin.kwargs, factory, normalizer=True)
            normalizers.append(plugin)
        elif plugin.name in MECHANISMS:
            if plugin.name in mechanisms:
                raise ValueError(f"spec {spec!r} names the mechanism {plugin.name!r} twice; keep one")
            if plugin.by_layer:
                raise ValueError(
                    f"spec {spec!r}: {plugin.name!r} is a token mechanism, which changes the whole ViT; only "
                    "normalizers take layers and values for each"
                )
            check_params(plugin.name, plugin.kwargs, MECHANISMS.get(plugin.name), normalizer=False)
            mechanisms[plugin.name] = plugin
        else:
            raise UnknownPluginError(
                f"in spec {spec!r}: {NORMALIZERS.unknown(plugin.name)} {MECHANISMS.unknown(plugin.name)}"
            )
    _check_apart(normalizers, spec)
    ordered = tuple(mechanisms[name] for name in sorted(mechanisms))
    return Spec(tuple(sorted(normalizers, key=lambda plugin: plugin.layers)) or Spec().normalizers, ordered)


def _check_apart(normalizers: Sequence[Plugin], spec: str) -> None:
    for one, other in combinations(normalizers, 2):
        if not one.layers or not other.layers:
            raise ValueError(
                f"spec {spec!r} names two normalizers, {one.name!r} and {other.name!r}; keep one, or give each its own "
                f"layers ({one.name}@0-5+{other.name}@6-11)"
            )
        shared = sorted(set(one.layers) & set(other.layers))
        if shared:
            raise ValueError(
                f"spec {spec!r} names two normalizers, {one.name!r} and {other.name!r}, for layer "
                f"{format_layers(shared)}; give each layer to one"
            )


def _parse_plugin(part: str, spec: str) -> Plugin:
    name, colon, rest = part.partition(":")
    name = name.strip().lower()
    if name == UNREGISTERED:
        label, colon, rest = rest.partition(":")
        label, layers = _named_layers(label, spec)
        name = registered_since(f"{UNREGISTERED}:{label}", spec)
    else:
        name, layers = _named_layers(name, spec)
    if not name or (colon and not rest):
        raise ValueError(
            f"spec {spec!r} has an empty part; write name[@layers][:key=value[,key=value]] joined with '+'"
        )
    params: dict[str, Value] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = (piece.strip() for piece in item.partition("="))
        if not key or not equals or not value:
            raise ValueError(f"spec {spec!r}: {item!r} is not key=value")
        if key in params:
            raise ValueError(f"spec {spec!r}: parameter {key!r} of {name!r} is given twice")
        params[key] = read_value(value)
    return Plugin(name, tuple(sorted(params.items())), layers=layers)


def _named_layers(text: str, spec: str) -> tuple[str, tuple[int, ...]]:
    """``name@layers`` apart."""
    name, at, layers = (piece.strip() for piece in text.partition("@"))
    return name, read_layers(layers, spec) if at else ()
