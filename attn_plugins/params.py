"""Parameters of plugins: their values as text, and which of them a registered callable takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from .by_layer import Ramp

__all__ = ["Value", "check_params", "format_value", "parameters", "plain_params", "read_value"]

Value = bool | int | float | str | Ramp


def parameters(factory: Callable[..., Any], *, normalizer: bool) -> Mapping[str, inspect.Parameter] | None:
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


def read_value(text: str) -> Value:
    """What a spec string says by ``text``: true or false, a number, a ramp, or else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    ramp = Ramp.read(text)
    return text if ramp is None else ramp


def format_value(value: object) -> str:
    """The text from which :func:`read_value` reads ``value``."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("e+", "e")  # 1e+20: '+' joins plugins


def plain_params(name: str, given: Mapping[str, Any]) -> tuple[tuple[str, Value], ...]:
    """Parameters as a spec string would give them.

    Raises:
        ValueError: one that it could not.
    """
    params: dict[str, Value] = {}
    for key, value in given.items():
        if isinstance(value, Real) and not isinstance(value, bool):  # NumPy's numbers are Real too
            value = int(value) if isinstance(value, Integral) else float(value)
        if isinstance(value, str):
            value = Ramp.read(value) or value
        text = format_value(value)
        same = not set(text) & set("+:,=") and text == text.strip() != "" and read_value(text) == value
        if not same or type(read_value(text)) is not type(value):
            raise ValueError(f"{name!r}: {key}={value!r} is nothing that a spec string can say")
        params[key] = value
    return tuple(sorted(params.items()))


def check_params(name: str, params: Mapping[str, Value], factory: object, *, normalizer: bool) -> None:
    """Raise ``ValueError`` for parameters that what is registered as ``name`` does not take, and for missing ones."""
    if not callable(factory):
        raise ValueError(f"what is registered as {name!r} is not callable: {factory!r}")
    known = parameters(factory, normalizer=normalizer)
    if known is None:
        return
    for key, value in params.items():
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name!r} has no parameter {key!r}; {has}")
        default = known[key].default
        wanted = _wanted(value, default)
        if wanted is not None:
            raise ValueError(f"{name}: {key}={value!r}; it is {wanted}, such as {format_value(default)}")
    missing = [key for key, p in known.items() if p.default is p.empty and key not in params]
    if missing:
        raise ValueError(f"{name!r} needs {', '.join(f'{key}=' for key in missing)}, which has no default")


def _wanted(value: Value, default: object) -> str | None:
    """What a parameter with this default takes, if ``value`` is not that."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(value, Ramp):
        return None if isinstance(default, (int, float)) or default is inspect.Parameter.empty else "one value"
    if isinstance(default, (int, float)) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return "a number"
    return None
