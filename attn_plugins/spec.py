"""Spec strings: ``"entmax15+registers:num=4"`` to objects and back.

Grammar: ``name[:key=value[,key=value]]``, joined with ``+``; at most one normalizer, any number of mechanisms.
The same string is used in Python, trainer flags, YAML, mmseg configs, checkpoint metadata and result tables.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

from .errors import UnknownPluginError
from .registry import MECHANISMS, NORMALIZERS

__all__ = ["Plugin", "Spec", "parse"]

Value = bool | int | float | str


@dataclass(frozen=True)
class Plugin:
    """One name of a spec with its parameters, e.g. ``registers:num=4``."""

    name: str
    params: tuple[tuple[str, Value], ...] = ()

    @property
    def kwargs(self) -> dict[str, Value]:
        return dict(self.params)

    def __str__(self) -> str:
        if not self.params:
            return self.name
        return self.name + ":" + ",".join(f"{key}={_format(value)}" for key, value in self.params)


@dataclass(frozen=True)
class Spec:
    """A parsed spec: one normalizer (``softmax`` if none was named) and token mechanisms.

    Attributes:
        normalizer: the row normalizer.
        mechanisms: token mechanisms, sorted by name, so that equal specs compare equal.
    """

    normalizer: Plugin = field(default_factory=lambda: Plugin("softmax"))
    mechanisms: tuple[Plugin, ...] = ()

    def __str__(self) -> str:
        parts = [str(plugin) for plugin in self.mechanisms]
        if self.normalizer.name != "softmax" or not parts:
            parts.insert(0, str(self.normalizer))
        return "+".join(parts)


def parse(spec: str | Spec) -> Spec:
    """Read a spec string and check every name and parameter against the registries.

    Args:
        spec: e.g. ``"entmax15"``, ``"entmax:alpha=1.3+registers:num=4"``; a :class:`Spec` is returned as it is.

    Returns:
        The parsed spec; ``str()`` of it is the canonical form.

    Raises:
        UnknownPluginError: a name is not registered.
        ValueError: bad grammar, two normalizers, the same mechanism twice, or a parameter that is unknown, missing
            or of another type than its default.
    """
    if isinstance(spec, Spec):
        return spec
    if not isinstance(spec, str):
        raise ValueError(f"a spec is a string such as 'entmax15+registers:num=4', not {type(spec).__name__}: {spec!r}")
    normalizer: Plugin | None = None
    mechanisms: dict[str, Plugin] = {}
    for part in spec.split("+"):
        plugin = _parse_plugin(part.strip(), spec)
        if plugin.name in NORMALIZERS:
            if normalizer is not None:
                raise ValueError(
                    f"spec {spec!r} names two normalizers, {normalizer.name!r} and {plugin.name!r}; keep one"
                )
            _check_params(plugin, NORMALIZERS.get(plugin.name).factory)
            normalizer = plugin
        elif plugin.name in MECHANISMS:
            if plugin.name in mechanisms:
                raise ValueError(f"spec {spec!r} names the mechanism {plugin.name!r} twice; keep one")
            _check_params(plugin, MECHANISMS.get(plugin.name))
            mechanisms[plugin.name] = plugin
        else:
            raise UnknownPluginError(
                f"in spec {spec!r}: {NORMALIZERS.unknown(plugin.name)} {MECHANISMS.unknown(plugin.name)}"
            )
    ordered = tuple(mechanisms[name] for name in sorted(mechanisms))
    return Spec(normalizer or Plugin("softmax"), ordered)


def _parse_plugin(part: str, spec: str) -> Plugin:
    name, colon, rest = part.partition(":")
    name = name.strip()
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


def _check_params(plugin: Plugin, factory: object) -> None:
    """Parameters are the keyword arguments of the registered callable, less those that the library passes."""
    if not callable(factory):
        raise ValueError(f"what is registered as {plugin.name!r} is not callable: {factory!r}")
    given_by_library = {"scores", "dim", "num_heads", "self"}
    signature = inspect.signature(factory)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return
    known = [name for name in signature.parameters if name not in given_by_library]
    for key, value in plugin.params:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{plugin.name!r} has no parameter {key!r}; {has}")
        default = signature.parameters[key].default
        wanted = _wanted(value, default)
        if wanted is not None:
            raise ValueError(f"{plugin.name}: {key}={value!r}; it is {wanted}, such as {_format(default)}")
    missing = [name for name in known if signature.parameters[name].default is inspect.Parameter.empty]
    missing = [name for name in missing if name not in plugin.kwargs]
    if missing:
        raise ValueError(f"{plugin.name!r} needs {', '.join(f'{name}=' for name in missing)}, which has no default")


def _wanted(value: Value, default: object) -> str | None:
    """What a parameter with this default takes, if ``value`` is not that."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return "a number"
    return None
