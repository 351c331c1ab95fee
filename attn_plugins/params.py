"""Parameters of plugins: their values as text, and which of them a registered callable takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from .by_layer import Ramp

__all__ = [
    "ORDERS",
    "SCALE",
    "SCALES",
    "Value",
    "check_params",
    "format_value",
    "parameters",
    "plain_params",
    "read_value",
    "scaled_by_us",
]

Value = bool | int | float | str | Ramp

ORDERS = ("together", "deep_first", "shallow_first")
"""Of layers whose alpha is annealed."""
SCALE = "scale"
"""Parameter of every normalizer that has none of that name: a factor on its scores."""
SCALES = ("per_head", "learnable", "asentmax")
"""What it may be beside a number: a value for each head, the same learned, or one that grows with the keys."""


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
    """The text from which ``read_value`` reads ``value``."""
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
    ours = normalizer and scaled_by_us(factory)
    for key, value in params.items():
        if ours and key == SCALE:
            _check_scale(name, value)
            continue
        if key not in known:
            names = [*known, *([SCALE] if ours else [])]
            has = f"it has {', '.join(names)}" if names else "it has none"
            raise ValueError(f"{name!r} has no parameter {key!r}; {has}")
        default = known[key].default
        wanted = _wanted(value, default)
        if wanted is not None:
            raise ValueError(f"{name}: {key}={value!r}; it is {wanted}, such as {format_value(default)}")
    missing = [key for key, p in known.items() if p.default is p.empty and key not in params]
    if missing:
        raise ValueError(f"{name!r} needs {', '.join(f'{key}=' for key in missing)}, which has no default")


def scaled_by_us(factory: Any) -> bool:
    """Whether ``scale`` of a normalizer is the factor that this package puts in front, and not its own parameter."""
    known = parameters(factory, normalizer=True)
    return known is not None and SCALE not in known


def _check_scale(name: str, value: Value) -> None:
    numbers = [value.first, value.last] if isinstance(value, Ramp) else [value]
    fine = value in SCALES if isinstance(value, str) else all(_positive(number) for number in numbers)
    if not fine:
        raise ValueError(
            f"{name}: scale={format_value(value)} is no factor on the scores: a number above 0, such as 0.3, or "
            f"{', '.join(SCALES)}"
        )


def _positive(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _wanted(value: Value, default: object) -> str | None:
    """What a parameter with this default takes, if ``value`` is not that."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(value, Ramp):
        return None if isinstance(default, (int, float)) or default is inspect.Parameter.empty else "one value"
    if isinstance(default, (int, float)) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return "a number"
    return None
