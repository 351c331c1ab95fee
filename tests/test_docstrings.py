"""What ruff does not ask of docstrings, whose dialect is Google's sections in Markdown, as the API pages render it."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import attn_plugins
from attn_plugins import functional, testing

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (attn_plugins, functional, testing)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) or inspect.isclass(getattr(module, name))
}


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
