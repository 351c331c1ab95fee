"""Spec strings: ``"entmax15+registers:num=4"`` to objects and back.

Grammar: ``name[:key=value[,key=value]]``, joined with ``+``; at most one normalizer, any number of mechanisms.
The same string is used in Python, trainer flags, YAML, mmseg configs, checkpoint metadata and result tables.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from .errors import UnknownPluginError
from .registry import MECHANISMS, NORMALIZERS, UNREGISTERED
from .unregistered import check_picklable, named, registered_since

__all__ = ["Plugin", "Spec", "parse", "settled"]

Value = bool | int | float | str
Factory = Callable[..., Any]
"""A callable normalizer: ``f(scores, dim=-1) -> weights``, or a module class called as ``cls(num_heads=H)``."""


@dataclass(frozen=True)
class Plugin:
    """One name of a spec with its parameters, e.g. ``registers:num=4``.

    Attributes:
        name: as it is registered; ``unregistered:MODULE.QUALNAME`` of a callable that is not.
        params: names and values, sorted.
        factory: that callable; None for what is registered.
    """

    name: str
    params: tuple[tuple[str, Value], ...] = ()
    factory: Factory | None = field(default=None, repr=False)

    @property
    def kwargs(self) -> dict[str, Value]:
        return dict(self.params)

    def __str__(self) -> str:
        if not self.params:
            return self.name
        return self.name + ":" + ",".join(f"{key}={_format(value)}" for key, value in self.params)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plugin:
        return self  # nothing in it changes, and copying asks for less than pickling

    def __reduce__(self) -> tuple[Any, ...]:
        if self.factory is not None:
            check_picklable(self.factory)
        return Plugin, (self.name, self.params, self.factory)


@dataclass(frozen=True)
class Spec:
    """A parsed spec: one normalizer (``softmax`` if none was named) and token mechanisms.

    ``Spec.of("entmax", alpha=1.3) + Spec.of("registers", num=4)`` is ``parse("entmax:alpha=1.3+registers:num=4")``.

    Attributes:
        normalizer: the row normalizer.
        mechanisms: token mechanisms, sorted by name, so that equal specs compare equal.
    """

    normalizer: Plugin = field(default_factory=lambda: Plugin("softmax"))
    mechanisms: tuple[Plugin, ...] = ()

    @classmethod
    def of(cls, plugin: str | Factory, /, **params: Value) -> Spec:
        """The spec of one plugin.

        Args:
            plugin: a registered name, or a callable as :func:`attn_plugins.patch` takes it.
            params: its parameters; what a spec string can say: bool, int, float or str.

        Raises:
            UnknownPluginError: the name is not registered.
            ValueError: a parameter is unknown, missing, of another type than its default, or nothing that a spec
                string can say.
        """
        if isinstance(plugin, str):
            if set(plugin) & set("+:,="):
                raise ValueError(f"Spec.of takes one name, not {plugin!r}; a whole spec string is attn_plugins.parse's")
            made = Plugin(plugin.strip().lower(), _params(plugin, params))
        elif isinstance(bound := getattr(plugin, "plugin", None), Plugin) and not hasattr(plugin, "parameters"):
            made = bound  # of a Normalizer, whose parameters are bound; a module with parameters is a layer's own
        else:
            name, bound, factory = named(plugin)
            made = Plugin(name, _params(name, bound | params), factory)
        return _assemble([made], str(made))

    def __add__(self, other: Spec) -> Spec:
        """Both together; ``softmax`` is what a spec has that names no normalizer, and gives way.

        Raises:
            ValueError: two normalizers, or the same mechanism twice.
        """
        if not isinstance(other, Spec):
            return NotImplemented
        normalizers = [spec.normalizer for spec in (self, other) if spec.normalizer != Plugin("softmax")]
        return _assemble([*normalizers, *self.mechanisms, *other.mechanisms], f"{self}+{other}")

    def __str__(self) -> str:
        parts = [str(plugin) for plugin in self.mechanisms]
        if self.normalizer.name != "softmax" or not parts:
            parts.insert(0, str(self.normalizer))
        return "+".join(parts)


def parse(spec: str | Spec | Factory) -> Spec:
    """Read a spec string and check every name and parameter against the registries.

    Args:
        spec: e.g. ``"entmax15"``, ``"entmax:alpha=1.3+registers:num=4"``, names in any case; a :class:`Spec` is
            returned as it is; a callable normalizer (see :func:`attn_plugins.patch`) becomes the spec of its
            registered name, or ``unregistered:MODULE.QUALNAME``. Such a string is read only where that callable has
            been registered since: nothing is ever imported for it.

    Returns:
        The parsed spec; ``str()`` of it is the canonical form, names in lower case.

    Raises:
        UnknownPluginError: a name is not registered.
        ValueError: bad grammar, two normalizers, the same mechanism twice, or a parameter that is unknown, missing
            or of another type than its default.
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
        return plugin if settle is None else Plugin(plugin.name, tuple(sorted(settle(plugin.kwargs, new=new).items())))

    return Spec(spec.normalizer, tuple(map(said, spec.mechanisms)))


def parameters(factory: Factory, *, normalizer: bool) -> Mapping[str, inspect.Parameter] | None:
    """What a spec can set: the arguments of a registered callable less those that the library passes; None for any.

    The library passes a normalizer function its scores, whatever they are called, and ``dim``; a normalizer class
    ``num_heads``; a mechanism nothing.
    """
    try:
        found = dict(inspect.signature(factory).parameters)
    except ValueError:  # a builtin such as torch.softmax
        return {}
    if normalizer and not isinstance(factory, type):
        found.pop(next(iter(found), ""), None)
    if any(p.kind is p.VAR_KEYWORD for p in found.values()):
        return None
    passed = {"num_heads", "dim"} if normalizer else set()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in found.items() if p.kind in named and name not in passed}


def _assemble(plugins: Sequence[Plugin], spec: str) -> Spec:
    normalizer: Plugin | None = None
    mechanisms: dict[str, Plugin] = {}
    for plugin in plugins:
        if plugin.factory is not None or plugin.name in NORMALIZERS:
            if normalizer is not None:
                raise ValueError(
                    f"spec {spec!r} names two normalizers, {normalizer.name!r} and {plugin.name!r}; keep one"
                )
            factory = NORMALIZERS.get(plugin.name).factory if plugin.factory is None else plugin.factory
            _check_params(plugin, factory, normalizer=True)
            normalizer = plugin
        elif plugin.name in MECHANISMS:
            if plugin.name in mechanisms:
                raise ValueError(f"spec {spec!r} names the mechanism {plugin.name!r} twice; keep one")
            _check_params(plugin, MECHANISMS.get(plugin.name), normalizer=False)
            mechanisms[plugin.name] = plugin
        else:
            raise UnknownPluginError(
                f"in spec {spec!r}: {NORMALIZERS.unknown(plugin.name)} {MECHANISMS.unknown(plugin.name)}"
            )
    ordered = tuple(mechanisms[name] for name in sorted(mechanisms))
    return Spec(normalizer or Plugin("softmax"), ordered)


def _parse_plugin(part: str, spec: str) -> Plugin:
    name, colon, rest = part.partition(":")
    name = name.strip().lower()
    if name == UNREGISTERED:
        label, colon, rest = rest.partition(":")
        name = registered_since(f"{UNREGISTERED}:{label.strip()}", spec)
    if not name or (colon and not rest):
        raise ValueError(f"spec {spec!r} has an empty part; write name[:key=value[,key=value]] joined with '+'")
    params: dict[str, Value] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = (piece.strip() for piece in item.partition("="))
        if not key or not equals or not value:
            raise ValueError(f"spec {spec!r}: {item!r} is not key=value")
        if key in params:
            raise ValueError(f"spec {spec!r}: parameter {key!r} of {name!r} is given twice")
        params[key] = _value(value)
    return Plugin(name, tuple(sorted(params.items())))


def _value(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _format(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("e+", "e")  # 1e+20: '+' joins plugins


def _params(name: str, given: Mapping[str, Any]) -> tuple[tuple[str, Value], ...]:
    """Parameters as a spec string would give them.

    Raises:
        ValueError: one that it could not.
    """
    params: dict[str, Value] = {}
    for key, value in given.items():
        if isinstance(value, Real) and not isinstance(value, bool):  # NumPy's numbers are Real too
            value = int(value) if isinstance(value, Integral) else float(value)
        text = _format(value)
        same = not set(text) & set("+:,=") and text == text.strip() != "" and _value(text) == value
        if not same or type(_value(text)) is not type(value):
            raise ValueError(f"{name!r}: {key}={value!r} is nothing that a spec string can say")
        params[key] = value
    return tuple(sorted(params.items()))


def _check_params(plugin: Plugin, factory: object, *, normalizer: bool) -> None:
    if not callable(factory):
        raise ValueError(f"what is registered as {plugin.name!r} is not callable: {factory!r}")
    known = parameters(factory, normalizer=normalizer)
    if known is None:
        return
    for key, value in plugin.params:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{plugin.name!r} has no parameter {key!r}; {has}")
        default = known[key].default
        wanted = _wanted(value, default)
        if wanted is not None:
            raise ValueError(f"{plugin.name}: {key}={value!r}; it is {wanted}, such as {_format(default)}")
    missing = [name for name, p in known.items() if p.default is p.empty and name not in plugin.kwargs]
    if missing:
        raise ValueError(f"{plugin.name!r} needs {', '.join(f'{name}=' for name in missing)}, which has no default")


def _wanted(value: Value, default: object) -> str | None:
    """What a parameter with this default takes, if ``value`` is not that."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return "a number"
    return None
