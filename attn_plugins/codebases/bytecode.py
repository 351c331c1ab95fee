"""Python's bytecode, step by step: what is loaded, called and multiplied."""

from __future__ import annotations

import dis
import importlib.util
import itertools
import sys
import types
from collections.abc import Iterator
from typing import Any

from .fused import FUSED_ROOTS

__all__ = [
    "UNKNOWN",
    "call",
    "codes",
    "imported",
    "is_product",
    "last_int",
    "loads",
    "module",
    "multiplies",
    "summed",
    "written_numbers",
]

UNKNOWN = object()
"""In place of a value that only a run would tell."""


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """``code`` and what is nested in it (comprehensions, local functions)."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def loads(step: dis.Instruction) -> str | None:
    """The variable that a step puts on top of the stack."""
    if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"):
        return str(step.argval)
    if step.opname.startswith("LOAD_FAST") or step.opname == "STORE_FAST_LOAD_FAST":
        return str(step.argval[-1] if isinstance(step.argval, tuple) else step.argval)
    return None


def is_product(step: dis.Instruction) -> bool:
    if step.opname in ("BINARY_MATRIX_MULTIPLY", "INPLACE_MATRIX_MULTIPLY"):
        return True
    return step.opname == "BINARY_OP" and step.argrepr in ("@", "@=")


def multiplies(step: dis.Instruction) -> bool:
    return step.opname == "BINARY_MULTIPLY" or (step.opname == "BINARY_OP" and step.argrepr == "*")


def summed(following: list[dis.Instruction]) -> bool:
    """Whether what a step has left on the stack is summed at once over a dimension: ``(q * k).sum(-1)``.

    A sum of everything makes one number (``(shapes[:, 0] * shapes[:, 1]).sum()``, how many pixels there are).
    """
    if len(following) < 2 or following[0].opname not in ("LOAD_ATTR", "LOAD_METHOD") or following[0].argval != "sum":
        return False
    return not (following[1].opname in ("CALL", "CALL_METHOD", "CALL_FUNCTION") and following[1].arg == 0)


def call(steps: list[dis.Instruction], loaded: int) -> int | None:
    """Where the function that ``steps[loaded]`` puts on the stack is called: after its arguments were computed."""
    depth = 0
    for index in range(loaded + 1, len(steps)):
        step = steps[index]
        arguments = _CALLS_POP.get(step.opname)
        if arguments is not None and depth - (step.arg or 0) - arguments < 0:
            return index
        # Python 3.11 counts the arguments of a call at the PRECALL before it, which is left out here.
        depth += -1 - (step.arg or 0) if step.opname == "CALL" else dis.stack_effect(step.opcode, step.arg)
        if depth < 0:
            return index
    return None


# What a call takes off the stack besides its positional arguments: the function, a slot for self, names of keywords.
_CALLS_POP = {"CALL": 2, "CALL_KW": 3, "CALL_FUNCTION": 1, "CALL_METHOD": 2, "CALL_FUNCTION_KW": 2}


def written_numbers(steps: list[dis.Instruction]) -> dict[str, int]:
    """Local variables that are one whole number wherever they are set: ``dim = -2``."""
    found: dict[str, Any] = {}
    for before, step in itertools.pairwise(steps):
        if step.opname == "STORE_FAST":
            value = before.argval if before.opname.startswith(_WRITTEN) else None
            found[step.argval] = value if found.get(step.argval, value) == value else None
    return {name: value for name, value in found.items() if type(value) is int}


def last_int(steps: list[dis.Instruction], numbers: dict[str, int]) -> int | None:
    """The last whole number among the arguments of a call: the dimension, where it is written out."""
    found = None
    for step in steps:
        value = step.argval if step.opname.startswith(_WRITTEN) else numbers.get(loads(step) or "")
        found = value if type(value) is int else found
    return found


_WRITTEN = ("LOAD_CONST", "LOAD_SMALL_INT")


def module(name: str) -> Any:
    """A module that an import inside a function names, where it is loaded, or is one that fused functions live in."""
    if name in sys.modules:
        return sys.modules[name]
    if name.partition(".")[0] not in FUSED_ROOTS or importlib.util.find_spec(name.partition(".")[0]) is None:
        return UNKNOWN
    return importlib.import_module(name)


def imported(package: str, name: str) -> Any:
    """What ``from package import name`` gives, or the second step of ``import package.name as ...``."""
    if package.rpartition(".")[2] == name and package in sys.modules:
        return sys.modules[package]
    return getattr(module(package), name, UNKNOWN)
