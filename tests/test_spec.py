"""Spec strings: one canonical form, and every mistake named."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import attn_plugins
from attn_plugins import Spec, UnknownPluginError, parse
from attn_plugins.registry import NORMALIZERS
from attn_plugins.spec import Plugin, _parse_plugin


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("softmax", "softmax"),
        (" entmax15 ", "entmax15"),
        ("entmax:alpha=1.30", "entmax:alpha=1.3"),
        ("entmax : alpha = 1.3", "entmax:alpha=1.3"),
        ("entmax_alpha:learnable=True,init=1.2", "entmax_alpha:init=1.2,learnable=true"),
        ("registers:num=4+entmax15", "entmax15+registers:num=4"),
        ("registers+context_broadcasting", "context_broadcasting+registers"),
        ("softmax+registers", "registers"),
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    spec = parse(text)
    assert str(spec) == canonical
    assert parse(canonical) == spec and parse(spec) is spec


def test_values_are_typed() -> None:
    assert parse("entmax:alpha=2").normalizer.kwargs == {"alpha": 2}
    assert parse("entmax_alpha:learnable=false").normalizer.kwargs == {"learnable": False}
    assert parse("registers:num=4").mechanisms[0].kwargs == {"num": 4}


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text("abcxyz_/.", min_size=1).filter(lambda text: text not in ("true", "false") and not _number(text)),
)


def _number(text: str) -> bool:
    try:
        return not math.isnan(float(text)) or True
    except ValueError:
        return False


@given(st.dictionaries(st.text("abc_", min_size=1), VALUES, max_size=3))
def test_any_parameters_survive_the_string(params: dict[str, bool | int | float | str]) -> None:
    plugin = Plugin("name", tuple(sorted(params.items())))
    text = str(plugin)
    assert "+" not in text
    again = _parse_plugin(text, text)
    assert again == plugin and [type(v) for v in again.kwargs.values()] == [type(v) for v in plugin.kwargs.values()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty part"),
        ("entmax15+", "empty part"),
        ("entmax:", "empty part"),
        ("entmax:alpha", "'alpha' is not key=value"),
        ("entmax:alpha=", "is not key=value"),
        ("entmax:=2", "is not key=value"),
        ("entmax:alpha=1.2,alpha=1.3", "'alpha' of 'entmax' is given twice"),
        ("entmax15+softmax", "two normalizers, 'entmax15' and 'softmax'"),
        ("registers+registers:num=2", "'registers' twice"),
        ("entmax:beta=1", "'entmax' has no parameter 'beta'; it has alpha"),
        ("entmax15:alpha=1", "'entmax15' has no parameter 'alpha'; it has none"),
        ("entmax15:dim=0", "no parameter 'dim'"),
        ("entmax_alpha:num_heads=3", "no parameter 'num_heads'"),
        ("entmax:alpha=x", "entmax: alpha='x'; it is a number, such as 1.5"),
        ("entmax:alpha=true", "alpha=True; it is a number"),
        ("entmax_alpha:init=high", "init='high'; it is a number"),
        ("entmax_alpha:learnable=1", "learnable=1; it is true or false, such as true"),
        ("registers:num=four", "num='four'; it is a number, such as 4"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize("text", ["entmax1.5", "__import__", "os:path=1", "entmax15+registres"])
def test_unknown_names_list_near_matches(text: str) -> None:
    with pytest.raises(UnknownPluginError, match="entmax15") as error:
        parse(text)
    assert isinstance(error.value, ValueError) and repr(text) in str(error.value)
    if "registres" in text:
        assert "Did you mean 'registers'" in str(error.value)


@pytest.mark.parametrize("value", [None, 3, ["entmax15"]])
def test_what_is_no_string_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a spec is a string"):
        parse(value)  # type: ignore[arg-type]


def test_no_plugin_has_a_name() -> None:
    assert parse("softmax") == Spec() == attn_plugins.Spec()


@pytest.fixture
def new_names() -> Iterator[None]:
    with NORMALIZERS.temporarily():
        yield


def test_a_parameter_without_a_default_must_be_given(new_names: None) -> None:
    @attn_plugins.register_normalizer("tempered")
    def tempered(scores: torch.Tensor, tau: float, dim: int = -1) -> torch.Tensor:
        return torch.softmax(scores / tau, dim)

    with pytest.raises(ValueError, match="'tempered' needs tau=, which has no default"):
        parse("tempered")
    assert str(parse("tempered:tau=2")) == "tempered:tau=2"
