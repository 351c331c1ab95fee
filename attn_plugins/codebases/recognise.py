"""What a class's Python code says it does, without running it: how adapters recognise attention.

Attention classes of different codebases share no base class and few attribute names, but the functions that
they call are in their code: ``scaled_dot_product_attention``, or a softmax between two matrix products.
"""

from __future__ import annotations

import dis
import inspect
import itertools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["code_names", "methods", "returns_pair", "softmax_between_products"]

_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum"}


def _function(value: Any) -> types.FunctionType | None:
    """The Python function behind decorators; None for anything that has no Python code."""
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, types.FunctionType) else None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """``code`` and what is nested in it (comprehensions, local functions)."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _with_helpers(value: Any) -> list[types.FunctionType]:
    """A function and the module-level functions of its own package that it names."""
    function = _function(value)
    if function is None:
        return []
    helpers = map(_function, (function.__globals__.get(name) for name in _own_names(function)))
    return [function, *(h for h in helpers if h is not None and _package(h) == _package(function))]


def _package(function: types.FunctionType) -> str:
    return function.__module__.partition(".")[0]


def _own_names(function: types.FunctionType) -> set[str]:
    return {name for code in _codes(function.__code__) for name in code.co_names}


def code_names(value: Any) -> set[str]:
    """Names that a Python function's own code refers to; empty for anything else."""
    function = _function(value)
    return set() if function is None else _own_names(function)


def methods(cls: type) -> Iterator[tuple[str, set[str]]]:
    """Methods of ``cls``, each with the names that its code, ``super()`` calls and local helpers refer to.

    Methods that ``nn.Module`` has too, other than ``forward``, are left out.
    """
    owners = cls.__mro__[: cls.__mro__.index(nn.Module)] if nn.Module in cls.__mro__ else cls.__mro__[:-1]
    for method in dict.fromkeys(name for owner in owners for name in vars(owner)):
        if method != "forward" and hasattr(nn.Module, method):
            continue
        names: set[str] = set()
        for owner in owners:
            if method not in vars(owner):
                continue
            functions = _with_helpers(vars(owner)[method])
            names.update(*map(_own_names, functions))
            if not functions or not _calls_base(functions[0], owner):
                break
        if names:
            yield method, names


def _calls_base(function: types.FunctionType, owner: type) -> bool:
    return bool({"super", *(base.__name__ for base in owner.__mro__[1:])} & _own_names(function))


def returns_pair(value: Any) -> bool:
    """Whether a Python function ends in ``return a, b``."""
    code = list(dis.get_instructions(_function(value) or value))
    return any(
        a.opname == "BUILD_TUPLE" and a.arg == 2 and b.opname == "RETURN_VALUE" for a, b in itertools.pairwise(code)
    )


def softmax_between_products(value: Any) -> bool:
    """Whether a function, or a helper that it calls, multiplies matrices, takes a softmax and multiplies again."""
    for function in _with_helpers(value):
        steps = list(dis.get_instructions(function))
        calls = {_call(steps, index) for index, step in enumerate(steps) if step.argval == "softmax"}
        seen = "".join("s" if i in calls else "@" if _multiplies(step) else "" for i, step in enumerate(steps))
        if "@s" in seen and seen.rindex("@") > seen.index("@s"):
            return True
    return False


def _multiplies(step: dis.Instruction) -> bool:
    return step.argval in _PRODUCTS or (step.opname == "BINARY_OP" and step.argrepr == "@")


def _call(steps: list[dis.Instruction], loaded: int) -> int | None:
    """Where the function that ``steps[loaded]`` puts on the stack is called: after its arguments were computed."""
    depth = 0
    for index in range(loaded + 1, len(steps)):
        depth += dis.stack_effect(steps[index].opcode, steps[index].arg)
        if depth < 0:
            return index
    return None
