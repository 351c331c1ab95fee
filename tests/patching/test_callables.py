"""``patch`` takes what ``attention`` takes: functions and module classes, registered or not."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_plugins
from attn_plugins import Spec, UnknownPluginError
from attn_plugins.functional import EntmaxAlpha, bind, entmax, entmax15
from attn_plugins.patching import spec_of
from attn_plugins.record import records_in
from attn_plugins.registry import NORMALIZERS

from .models import images, tiny_vit

HERE = f"unregistered:{__name__}."


def squares(z: Tensor, dim: int = -1, floor: float = 0.5) -> Tensor:
    """Rows that sum to 1; the first argument has a name of its own."""
    powers = z.sub(z.amax(dim, keepdim=True)).add(floor).relu() ** 2
    return powers / powers.sum(dim, keepdim=True).clamp(min=1e-9)


class Tempered(nn.Module):
    def __init__(self, num_heads: int, start: float = 2.0) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.full((num_heads, 1, 1), start))

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        return torch.softmax(scores * self.temperature, dim)


class Doubled:
    """A callable object."""

    def __call__(self, scores: Tensor, dim: int = -1) -> Tensor:
        return torch.softmax(2 * scores, dim)


@pytest.fixture
def new_names() -> Iterator[None]:
    with NORMALIZERS.temporarily():
        yield


@pytest.fixture
def model() -> Any:
    return tiny_vit()


def run(model: nn.Module) -> Tensor:
    out: Tensor = model(images())
    return out


def temperatures(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if name.endswith("temperature")]


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        (squares, HERE + "squares"),
        (functools.partial(squares, floor=0.7), HERE + "squares:floor=0.7"),
        (Doubled(), HERE + "Doubled()"),
        (F.softmax, "unregistered:torch.nn.functional.softmax"),
        (entmax15, "entmax15"),
        (functools.partial(entmax, alpha=1.3), "entmax:alpha=1.3"),
        (EntmaxAlpha, "entmax_alpha"),
        (bind("entmax:alpha=1.2"), "entmax:alpha=1.2"),
        (Tempered, HERE + "Tempered"),
        (functools.partial(Tempered, start=3.0), HERE + "Tempered:start=3.0"),
    ],
)
def test_what_is_recorded(given: Any, spec: str, model: nn.Module) -> None:
    attn_plugins.patch(model, given)
    assert {line.spec for line in attn_plugins.describe(model)} == {spec} == {spec_of(model)}
    assert {record["spec"] for record in records_in(model.state_dict()).values()} == {spec}
    before, state = run(model), {key: value.clone() for key, value in model.state_dict().items()}
    attn_plugins.patch(model, given)  # again: nothing changes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model.load_state_dict(state)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(run(copied), before, rtol=0, atol=0)
        assert spec_of(copied) == spec


def test_it_computes_what_it_is(model: nn.Module) -> None:
    with NORMALIZERS.temporarily():
        attn_plugins.register_normalizer("squares")(squares)
        named = run(attn_plugins.patch(copy.deepcopy(model), "squares:floor=0.7"))
    torch.testing.assert_close(run(attn_plugins.patch(model, functools.partial(squares, floor=0.7))), named)
    attn_plugins.patch(model, torch.softmax)
    reached = run(model)
    torch.testing.assert_close(run(attn_plugins.unpatch(model)), reached)


def test_what_a_class_learned_is_kept_and_another_class_of_its_name_starts_anew(model: nn.Module) -> None:
    def variant(start_at: float) -> type[nn.Module]:
        class Local(Tempered):
            def __init__(self, num_heads: int) -> None:
                super().__init__(num_heads, start_at)

        return Local

    one, other = variant(2.0), variant(3.0)
    attn_plugins.patch(model, one)
    learned = temperatures(model)
    with torch.no_grad():
        learned[0].fill_(7)
    attn_plugins.patch(model, one)
    assert temperatures(model)[0] is learned[0]
    attn_plugins.patch(model, other)
    assert all((p == 3).all() for p in temperatures(model))
    copied = copy.deepcopy(model)
    torch.testing.assert_close(run(copied), run(model))
    with pytest.raises((pickle.PicklingError, AttributeError), match="Local"):
        pickle.dumps(model)


def test_a_lambda_copies_and_does_not_pickle(model: nn.Module) -> None:
    attn_plugins.patch(model, lambda scores, dim=-1: torch.softmax(2 * scores, dim))
    torch.testing.assert_close(run(copy.deepcopy(model)), run(model), rtol=0, atol=0)
    with pytest.raises(pickle.PicklingError, match=r"<lambda> cannot be pickled.*top level of a module"):
        pickle.dumps(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (EntmaxAlpha(2), r"EntmaxAlpha\(\)' is one module, which all layers would share; pass its class"),
        (nn.Softmax(dim=-1), "is one module"),
        (lambda scores: scores, r"cannot be called as f\(scores, dim=-1\)"),
        (lambda scores, dim=-1: scores.sum(dim), r"returns shape \(1,\)"),
        (lambda scores, dim=-1: None, "returns NoneType"),
        (functools.partial(squares, flor=1), "has no parameter 'flor'; it has floor"),  # type: ignore[call-arg]
        (functools.partial(squares, floor=torch.ones(1)), "nothing that a spec string can say"),  # type: ignore[arg-type]
        (functools.partial(squares, None), "by keyword"),  # type: ignore[arg-type]
        (nn.Linear, "needs in_features=, out_features="),
        (3, "a spec is a string .* or a callable"),
    ],
)
def test_mistakes_change_nothing(given: Any, message: str, model: nn.Module) -> None:
    before, keys = run(model), list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        attn_plugins.patch(model, given)
    torch.testing.assert_close(run(model), before, rtol=0, atol=0)
    assert list(model.state_dict()) == keys and spec_of(model) is None


def test_mechanisms_and_contexts() -> None:
    spec = Spec.of(squares, floor=0.7) + Spec.of("registers", num=2)
    assert str(spec) == HERE + "squares:floor=0.7+registers:num=2"
    model = tiny_vit()
    with attn_plugins.patched(model, squares):
        assert spec_of(model) == HERE + "squares"
    assert spec_of(model) is None


def test_a_file_is_refused_until_the_callable_is_registered(tmp_path: Path, new_names: None) -> None:
    label = HERE + "squares"
    with pytest.raises(UnknownPluginError, match=r"nothing is imported for it\. Register it .*--import.*--plugins"):
        attn_plugins.parse(label)
    attn_plugins.register_normalizer("Squares")(squares)
    assert str(attn_plugins.parse(label)) == "squares"
    assert str(attn_plugins.parse(f"{label}:floor=0.7+cb_s")) == "squares:floor=0.7+cb_s"
    registered = attn_plugins.patch(tiny_vit(), "squares")
    registered.load_state_dict(registered.state_dict())


def test_weights_of_a_callable_load_where_it_is_registered_since(new_names: None) -> None:
    state = attn_plugins.patch(tiny_vit(), squares).state_dict()
    with pytest.raises(ValueError, match="unregistered"):
        attn_plugins.patch(tiny_vit(), "entmax15").load_state_dict(state)
    attn_plugins.register_normalizer("squares")(squares)
    model = attn_plugins.patch(tiny_vit(), "squares")
    model.load_state_dict(state)
    assert spec_of(model) == "squares"


def test_nothing_is_imported_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for text in ("unregistered:evil.run", "UNREGISTERED:evil.run:x=1", "unregistered:os.system", "unregistered:"):
        with pytest.raises(ValueError):
            attn_plugins.parse(text)


def test_a_lambda_is_never_taken_for_one_that_was_registered(new_names: None) -> None:
    attn_plugins.register_normalizer("first")(lambda scores, dim=-1: torch.softmax(scores, dim))
    with pytest.raises(UnknownPluginError, match="<lambda>"):
        attn_plugins.parse(f"{HERE}<lambda>")
