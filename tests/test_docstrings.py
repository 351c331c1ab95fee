"""Docstrings speak one dialect, Google's sections and Markdown, as the API pages render it; ruff holds the sections."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import attn_plugins
from attn_plugins import functional, testing

PACKAGE = Path(attn_plugins.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
WRONG = re.compile(r":\w+:`+[^`]*`+|(?<!`)`[^`]+`(?!`)|::$", re.MULTILINE)
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (attn_plugins, functional, testing)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))
}


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, those of attributes among them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def test_code_is_quoted_one_way() -> None:
    """``so``: roles and literal blocks would be shown as they stand, and single backticks are a second way."""
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {found.group()}"
        for path in MODULES
        for line, text in docstrings(path)
        for found in WRONG.finditer(re.sub(r"(?<!:)``[^`]+``", "", text))
    ]
    assert not wrong, "write ``so``:\n" + "\n".join(wrong)


def entries(text: str) -> set[str]:
    """What the entries of the sections Args and Attributes are of; one may be of several, ``q, k, v: ...``."""
    heads = re.findall(r"^ {4}(?: {4})?([\w*]+(?:, [\w*]+)*)(?: \(.*\))?: ", text, re.MULTILINE)
    return {name.lstrip("*") for head in heads for name in head.split(", ")}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_what_every_argument_is(name: str) -> None:
    value: Any = PUBLIC[name]
    text = inspect.cleandoc(value.__doc__ or "")
    assert text, "has no docstring"
    own = inspect.isfunction(value) or not issubclass(value, (BaseException, tuple, list))
    wanted = set(inspect.signature(value).parameters) if own else set()
    assert wanted <= entries(text), f"says nothing of {sorted(wanted - entries(text))}"
