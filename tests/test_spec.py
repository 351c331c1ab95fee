"""Spec strings: one canonical form, and every mistake named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

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
        ("Entmax15+REGISTERS:num=4", "entmax15+registers:num=4"),
        ("entmax:alpha=1", "entmax:alpha=1"),  # is softmax, and says what was said
        ("entmax15@6-11", "entmax15@6-11"),
        ("Entmax15 @ 11/6 - 10/3", "entmax15@3/6-11"),
        ("entmax15@3-3", "entmax15@3"),
        ("entmax15@6-11+sparsemax@0-2", "sparsemax@0-2+entmax15@6-11"),
        ("softmax@0-2+registers", "softmax@0-2+registers"),
        ("entmax:alpha=1.10..1.50", "entmax:alpha=1.1..1.5"),
        ("entmax@6-11:alpha=1e-1..2", "entmax@6-11:alpha=0.1..2.0"),
        ("entmax:alpha=1.5..1.5", "entmax:alpha=1.5"),
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
        ("entmax15@6-11+softmax", "two normalizers, 'entmax15' and 'softmax'; keep one, or give each its own layers"),
        ("entmax15@6-11+softmax@0-7", "'softmax' and 'entmax15'|'entmax15' and 'softmax', for layer 6-7"),
        ("entmax15@", "'' names no layers; write indices"),
        ("entmax15@6-", "'6-' names no layers"),
        ("entmax15@-1", "'-1' names no layers"),
        ("entmax15@11-6", "'11-6' names no layers"),
        ("entmax15@0-99999999999", "names no layers"),
        ("entmax15@six", "'six' names no layers"),
        ("@6-11", "empty part"),
        ("registers@6-11", "'registers' is a token mechanism, which changes the whole ViT"),
        ("registers:num=2..4", "'registers' is a token mechanism, which changes the whole ViT"),
        ("entmax_alpha:learnable=0..1", "it is true or false"),
        ("entmax:alpha=1.1..x", "it is a number"),
        ("entmax:alpha=1..inf", "it is a number"),
        ("registers+registers:num=2", "'registers' twice"),
        ("entmax:beta=1", "'entmax' has no parameter 'beta'; it has alpha"),
        ("entmax15:alpha=1", "'entmax15' has no parameter 'alpha'; it has scale"),
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


PLUGINS = st.one_of(
    st.sampled_from([Spec.of("softmax"), Spec.of("entmax15"), Spec.of("Sparsemax"), Spec.of("cb_s"), Spec.of("gated")]),
    st.floats(1, 100).map(lambda alpha: Spec.of("entmax", alpha=alpha)),
    st.integers(1, 10**6).map(lambda num: Spec.of("registers", num=num)),
    st.builds(
        lambda learn, init: Spec.of("entmax_alpha", learnable=learn, init=init), st.booleans(), st.floats(1.1, 1.9)
    ),
)


@given(st.lists(PLUGINS, min_size=1, max_size=4))
def test_typed_specs_are_what_their_strings_say(specs: list[Spec]) -> None:
    names = [
        plugin.name for spec in specs for plugin in (spec.normalizer, *spec.mechanisms) if plugin.name != "softmax"
    ]
    normalizers = [name for name in names if name in NORMALIZERS]
    if len(normalizers) > 1 or len(set(names)) < len(names):
        with pytest.raises(ValueError, match=r"two normalizers|twice"):
            sum(specs[1:], specs[0])
        return
    whole = sum(specs[1:], specs[0])
    assert parse(str(whole)) == whole and str(parse(str(whole))) == str(whole)
    assert whole == parse("+".join(str(spec) for spec in specs if str(spec) != "softmax") or "softmax")


def test_typed_specs_take_numbers_of_numpy_and_nothing_a_string_cannot_say() -> None:
    numpy = pytest.importorskip("numpy", reason="its numbers are asked about")
    assert str(Spec.of("entmax", alpha=numpy.float32(1.5))) == "entmax:alpha=1.5"
    assert str(Spec.of("registers", num=numpy.int64(4))) == "registers:num=4"
    values: list[Any] = [math.nan, None, [1], "a+b", "1.5", " x", ""]
    for value in values:
        with pytest.raises(ValueError, match="nothing that a spec string can say"):
            Spec.of("entmax", alpha=value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spec.of("entmax:alpha=1.3"), "takes one name, not 'entmax:alpha=1.3'"),
        (lambda: Spec.of("entmax", beta=1), "no parameter 'beta'"),
        (lambda: Spec.of("entmax", alpha=True), "it is a number"),
        (lambda: Spec.of("entmex"), "Did you mean 'entmax'"),
        (lambda: Spec.of("entmax15") + Spec.of("sparsemax"), "two normalizers"),
        (lambda: Spec.of("cb_s") + Spec.of("cb_s"), "twice"),
    ],
)
def test_mistakes_in_typed_specs(make: Callable[[], Spec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError):
        Spec.of("entmax15") + "registers"  # type: ignore[operator]


def test_names_that_differ_in_case_only_are_one(new_names: None) -> None:
    attn_plugins.register_normalizer("MyMax")(lambda z, dim=-1: torch.softmax(z, dim))
    assert str(parse("mymax")) == str(parse("MYMAX")) == "mymax"
    with pytest.raises(ValueError, match=r"'mymax' is registered already \('Mymax' differs in case only\)"):
        attn_plugins.register_normalizer("Mymax")(torch.softmax)


@pytest.mark.parametrize("name", ["scores", "z", "x", "attn_logits", "input"])
def test_the_first_argument_has_any_name(name: str, new_names: None) -> None:
    made: dict[str, Any] = {}
    exec(f"def mine({name}, dim=-1, tau=2.0): return ({name} / tau).softmax(dim)", made)
    attn_plugins.register_normalizer("mine")(made["mine"])
    with pytest.raises(ValueError, match="it has tau"):
        parse(f"mine:{name}=1")
    q = torch.randn(1, 2, 3, 4)
    out = attn_plugins.attention(q, q, q, normalizer="mine:tau=0.5")
    torch.testing.assert_close(out, attn_plugins.attention(q, q, q, scale=1.0))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda scores: scores, r"called as f\(scores, dim=-1\)"),
        (lambda *, scores, dim=-1: scores, "positional"),
        (3, "no callable"),
        (torch.nn.Identity().forward, "dim"),
    ],
)
def test_what_cannot_be_called_is_not_registered(factory: Any, message: str, new_names: None) -> None:
    with pytest.raises(ValueError, match=message):
        attn_plugins.register_normalizer("mine")(factory)
    assert "mine" not in NORMALIZERS


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


LAYERED = st.lists(st.sets(st.integers(0, 30), min_size=1), min_size=1, max_size=3)


@given(LAYERED)
def test_layers_survive_the_string(sets: list[set[int]]) -> None:
    names, taken = ["entmax15", "sparsemax", "softmax"], set[int]()
    parts = []
    for name, own in zip(names, sets, strict=False):
        if own - taken:
            parts.append(f"{name}@{'/'.join(map(str, own - taken))}")
        taken |= own
    spec = parse("+".join(parts))
    assert parse(str(spec)) == spec and spec.names_layers
    given_out = spec.for_layers(31)
    assert {index for index, plugin in enumerate(given_out) if plugin is not None} == taken
    with pytest.raises(ValueError, match="says something for each layer"):
        _ = spec.normalizer


def test_values_run_evenly_from_the_first_layer_to_the_last() -> None:
    given_out = parse("entmax@2-12:alpha=1.5..1.1").for_layers(14)
    values = [plugin.kwargs["alpha"] for plugin in given_out if plugin is not None]
    torch.testing.assert_close(torch.tensor(values), torch.linspace(1.5, 1.1, 11))
    assert Spec.of("entmax@2-12", alpha="1.5..1.1") == parse("entmax@2-12:alpha=1.5..1.1")
