"""Whether a function is exactly one that is known: its code compared as a syntax tree, whatever its locals are called.

A forward of ours may take the place of upstream's only where it is sure to compute the same. Names alone do not
tell: the same names stand in classes with other returns, layouts and masks. What is kept of upstream's code is a
digest.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import weakref
from typing import Any

from .recognise import unwrapped

__all__ = ["digest_of"]

_SEEN: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()
# Annotations, positions and what newer Pythons add to a tree are not what a function computes.
_LEFT_OUT = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx", "decorator_list", "name"}


def digest_of(value: Any) -> str | None:
    """16 hexadecimal digits of a Python function's tree; None where its source cannot be read.

    Two functions have the same where they differ in nothing but comments, docstrings, annotations, decorators and the
    names of local variables; argument names count, since callers use them.
    """
    function = unwrapped(value)
    if function is None:
        return None
    if function not in _SEEN:
        _SEEN[function] = _digest(function)
    return _SEEN[function]


def _digest(function: Any) -> str | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None  # typed into a prompt, generated, or a lambda inside an expression
    if not isinstance(tree, ast.FunctionDef):
        return None
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    arguments = {argument.arg for argument in ast.walk(tree.args) if isinstance(argument, ast.arg)}
    stored = [n for n in ast.walk(ast.Module(body, [])) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    names: dict[str, str] = {}
    for name in sorted(stored, key=lambda n: (n.lineno, n.col_offset)):
        if name.id not in arguments:
            names.setdefault(name.id, f"local{len(names)}")
    text = _text([tree.args, *body], names)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(node: Any, names: dict[str, str]) -> str:
    if isinstance(node, list):
        return "[" + ",".join(_text(item, names) for item in node) + "]"
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.AST):
        fields = [
            f"{field}={_text(value, names)}"
            for field, value in ast.iter_fields(node)
            if value not in (None, []) and not (field in _LEFT_OUT and not isinstance(node, ast.alias))
        ]
        return f"{type(node).__name__}({','.join(fields)})"
    return repr(node)
