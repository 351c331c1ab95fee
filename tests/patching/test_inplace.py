"""patch, unpatch, patched: in place, all or nothing, undone without a trace."""

from __future__ import annotations

import warnings

import entmax
import pytest
import timm
import torch
from codebases.twin import assert_same_outputs, normalized_by
from helpers.tiny_vit import Attention
from torch import Tensor, nn

import attn_plugins
from attn_plugins.registry import NORMALIZERS

from .models import images, snapshot, tiny_vit


def specs(model: nn.Module) -> list[str | None]:
    return [line.spec for line in attn_plugins.describe(model)]


@pytest.mark.parametrize(
    ("spec", "normalizer"),
    [
        ("softmax", torch.softmax),
        ("sparsemax", entmax.sparsemax),
        ("entmax15", entmax.entmax15),
        ("entmax:alpha=1.3", lambda scores, dim: entmax.entmax_bisect(scores, 1.3, dim=dim)),
        ("entmax_alpha:init=1.7", lambda scores, dim: entmax.entmax_bisect(scores, 1.7, dim=dim)),
    ],
)
def test_outputs_are_those_of_the_entmax_package(spec: str, normalizer: object) -> None:
    model, x = tiny_vit(), images()
    softmax = torch.softmax
    with normalized_by(softmax if normalizer is softmax else normalizer):  # type: ignore[arg-type]
        expected = model(x)
    assert attn_plugins.patch(model, spec) is model
    assert_same_outputs(model, expected, lambda m: m(x))


def test_unpatch_leaves_no_trace() -> None:
    model, x = tiny_vit(), images()
    model.blocks[1].register_forward_hook(lambda *_: None)
    before, output = snapshot(model), model(x)
    for spec in ("entmax15", "entmax_alpha", "sparsemax"):
        attn_plugins.patch(model, spec)
        assert not torch.equal(model(x), output)
        assert isinstance(model.blocks[0].attn, Attention)
    assert attn_plugins.unpatch(model) is model
    assert snapshot(model) == before
    assert torch.equal(model(x), output)
    attn_plugins.unpatch(model)
    assert snapshot(model) == before


def test_patching_twice_changes_nothing() -> None:
    model = attn_plugins.patch(tiny_vit(), "entmax_alpha")
    with torch.no_grad():
        model.get_parameter("blocks.2.attn.attn_plugins_normalizer.logit").add_(0.7)
    before = snapshot(model)
    attn_plugins.patch(model, "entmax_alpha")
    assert snapshot(model) == before
    attn_plugins.patch(model, "entmax_alpha:init=1.2")
    assert snapshot(model) != before


def test_patching_again_replaces_the_chosen_layers() -> None:
    model = attn_plugins.patch(tiny_vit(), "entmax15")
    attn_plugins.patch(model, "entmax_alpha", layers=[1, -1])
    assert specs(model) == ["entmax15", "entmax_alpha", "entmax15", "entmax_alpha"]
    attn_plugins.patch(model, "sparsemax", layers="blocks.1")
    assert specs(model) == ["entmax15", "sparsemax", "entmax15", "entmax_alpha"]
    assert [name for name, _ in model.named_parameters() if "attn_plugins" in name] == [
        "blocks.3.attn.attn_plugins_normalizer.logit"
    ]


def test_patched_gives_back_what_was_there() -> None:
    model, x = tiny_vit(), images()
    bare, dense = snapshot(model), model(x)
    with attn_plugins.patched(model, "entmax_alpha") as inside:
        assert inside is model and specs(model) == ["entmax_alpha"] * 4
        with attn_plugins.patched(model, "sparsemax", layers=0):
            assert specs(model) == ["sparsemax"] + ["entmax_alpha"] * 3
        assert specs(model) == ["entmax_alpha"] * 4
    assert snapshot(model) == bare and torch.equal(model(x), dense)
    attn_plugins.patch(model, "entmax15")
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="inside"), attn_plugins.patched(model, "softmax"):
        raise RuntimeError("inside")
    assert snapshot(model) == before


def test_a_single_attention_module() -> None:
    attention, x = Attention(), torch.randn(3, 9, 16)
    with normalized_by(entmax.entmax15):
        expected = attention(x)
    attn_plugins.patch(attention, "entmax15")
    assert_same_outputs(attention, expected, lambda m: m(x))
    assert [line.path for line in attn_plugins.describe(attention)] == [""]


def test_a_shared_module_is_one_layer() -> None:
    model, x = tiny_vit(), images()
    model.blocks[2] = model.blocks[0]
    with normalized_by(entmax.entmax15):
        expected = model(x)
    attn_plugins.patch(model, "entmax15")
    assert specs(model) == ["entmax15"] * 3
    assert_same_outputs(model, expected, lambda m: m(x))


def test_hooks_go_on() -> None:
    model, x, seen = tiny_vit(), images(), []
    attention = model.get_submodule("blocks.0.attn")
    attention.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    attention.register_forward_hook(lambda module, args, output: seen.append(output))
    with normalized_by(entmax.entmax15):
        expected = model(x)
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, expected, lambda m: m(x))
    torch.testing.assert_close(seen[1], seen[0])


def test_a_forward_that_hides_the_class_is_refused() -> None:
    """accelerate's hooks put a ``forward`` on the module, and the patched class's would never run."""
    model = tiny_vit()
    attention, first = model.get_submodule("blocks.2.attn"), model.get_submodule("blocks.0.attn")
    attention.forward = attention.forward
    before = [type(module) for module in model.modules()]
    with pytest.raises(attn_plugins.UnsupportedModelError, match=r"blocks\.2\.attn has a forward of its own"):
        attn_plugins.patch(model, "entmax15")
    assert [type(module) for module in model.modules()] == before
    assert attn_plugins.patch(model, "entmax15", layers=[0, 1, 3]) is model
    first.forward = first.forward
    with pytest.raises(attn_plugins.UnsupportedModelError, match=r"blocks\.0\.attn has a forward of its own"):
        attn_plugins.unpatch(model)
    del first.forward
    attn_plugins.unpatch(model)
    assert [type(module) for module in model.modules()] == before


class Doubled(Attention):
    """A subclass whose attention is in the class that it extends."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_subclass_that_calls_super() -> None:
    model, x = Doubled(), torch.randn(3, 9, 16)
    with normalized_by(entmax.entmax15):
        expected = model(x)
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, expected, lambda m: m(x))


def test_every_error_leaves_the_model_alone() -> None:
    model = attn_plugins.patch(tiny_vit(), "entmax15", layers=[0, 2])
    before = snapshot(model)
    wrong: list[tuple[str, object, str]] = [
        ("entmax51", None, "entmax15"),
        ("entmax15+sparsemax", None, "two normalizers"),
        ("entmax15:beta=2", None, "no parameter 'beta'"),
        ("entmax:alpha=0.5", None, "alpha"),
        ("entmax_alpha:init=7", None, "init=7"),
        ("entmax15+registers:num=4", None, "TinyViT"),
        ("entmax15", 4, "0 blocks.0.attn"),
        ("entmax15", [0, -5], "-5"),
        ("entmax15", "blocks.9", "blocks.9"),
        ("entmax15", slice(9, 12), "selects none"),
        ("entmax15", lambda name, module: False, "selects none"),
        ("entmax15", [], "selects none"),
    ]
    for spec, layers, message in wrong:
        with pytest.raises(ValueError, match=message):
            attn_plugins.patch(model, spec, layers=layers)  # type: ignore[arg-type]
        assert snapshot(model) == before, (spec, layers)


@pytest.mark.parametrize("fails_at", [1, 3])
def test_a_constructor_that_fails_late_leaves_the_model_alone(fails_at: int) -> None:
    built = []

    class Fragile(nn.Module):
        def __init__(self, num_heads: int) -> None:
            super().__init__()
            built.append(num_heads)
            if len(built) == fails_at:
                raise MemoryError("no room for this layer")

    model = attn_plugins.patch(tiny_vit(), "entmax15", layers=0)
    before = snapshot(model)
    with NORMALIZERS.temporarily():
        attn_plugins.register_normalizer("fragile")(Fragile)
        with pytest.raises(MemoryError):
            attn_plugins.patch(model, "fragile")
    assert snapshot(model) == before and len(built) == fails_at


def test_an_adapter_that_fails_late_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attn_plugins.patch(tiny_vit(), "sparsemax", layers=[0, 2])
    before = snapshot(model)
    seen = []

    def fails(base: type, *rest: object) -> type:
        seen.append(base)
        if len(seen) == 3:
            raise MemoryError("no room for this class")
        return original(base, *rest)  # type: ignore[arg-type]

    original = attn_plugins.swap.layered
    monkeypatch.setattr(attn_plugins.swap, "layered", fails)
    with pytest.raises(MemoryError):
        attn_plugins.patch(model, "entmax_alpha")
    assert snapshot(model) == before


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(attn_plugins.UnsupportedModelError, match=r"torch\.nn\.modules\.conv\.Conv2d.*register_adapter"):
        attn_plugins.patch(timm.create_model("resnet10t"), "entmax15")
    with pytest.raises(attn_plugins.UnsupportedModelError, match="Module, got str"):
        attn_plugins.patch("vit_small", "entmax15")  # type: ignore[type-var]


def test_no_warning_where_everything_is_reached() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attn_plugins.patch(tiny_vit(), "entmax15")


def test_describe_tells_path_class_adapter_spec_and_backend() -> None:
    model = attn_plugins.patch(tiny_vit(depth=3), "entmax_alpha", layers=1)
    attn_plugins.patch(model, "softmax", layers=2)
    lines = attn_plugins.describe(model)
    assert [(x.path, x.cls, x.adapter, x.spec) for x in lines] == [
        ("blocks.0.attn", "Attention", "sdpa", None),
        ("blocks.1.attn", "Attention", "sdpa", "entmax_alpha"),
        ("blocks.2.attn", "Attention", "sdpa", "softmax"),
    ]
    assert lines[0].backend is None and lines[1].backend in ("cpu", "reference") and lines[2].backend == "sdpa"
    assert [row.split()[0] for row in str(lines).splitlines()] == ["layer", *(x.path for x in lines)]


def test_the_log_says_what_was_patched_and_which_backend_computes_it(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_vit()
    with caplog.at_level("INFO", logger="attn_plugins"):
        attn_plugins.patch(model, "entmax15", layers=[0, 1])
    (backend,) = {line.backend for line in attn_plugins.describe(model) if line.backend}
    assert caplog.messages == [f"patched 2 of 4 attention layers with entmax15, backend {backend}"]
