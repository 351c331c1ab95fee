"""The context itself: whom it takes, what it restores, and what computes inside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import attn_plugins
from attn_plugins.functional import plain
from attn_plugins.registry import NORMALIZERS

from .models import CASES, build

pytest.importorskip("timm", reason="timm (the probes extra) is not installed")


@pytest.mark.parametrize(("name", "spec"), CASES)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_those_of_the_kernels(name: str, spec: str, training: bool) -> None:
    model, x = build(name, spec)
    model.train(training)

    def step() -> list[Tensor]:
        x.requires_grad_().grad = None
        model.zero_grad()
        out = model(x)
        out.square().mean().backward()
        assert x.grad is not None
        return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]

    outside = step()
    with attn_plugins.exportable(model) as given:
        inside = step()
    assert given is model
    assert len(inside) == len(outside) > 5
    for a, b in zip(inside, outside, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max()))


def kernels(model: nn.Module, x: Tensor) -> set[str]:
    """This package's operators that run in a forward."""
    with torch.profiler.profile() as profile, torch.no_grad():
        model(x)
    return {event.key for event in profile.key_averages() if event.key.startswith("attn_plugins::")}


@pytest.mark.parametrize("name", ["timm", "mha", "softmax"])
def test_no_kernel_runs_inside_and_all_do_again_after(name: str) -> None:
    model, x = build(name, "entmax15")
    before = kernels(model, x)
    assert before
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with attn_plugins.exportable(model):
        assert not kernels(model, x)
        inner = copy.deepcopy(model)
        with attn_plugins.exportable(inner):
            assert not kernels(inner, x)
        assert not kernels(inner, x)
    for each in (model, inner):
        assert kernels(each, x) == before
        assert all(torch.equal(value, state[key]) for key, value in each.state_dict().items())
    assert str(attn_plugins.describe(inner)) == str(attn_plugins.describe(model))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_any_exception_ends_it(error: type[BaseException]) -> None:
    model, _ = build("mha", "entmax15")
    with pytest.raises(error), attn_plugins.exportable(model):
        assert plain.wanted()
        raise error
    assert not plain.wanted()


def test_a_model_that_is_not_patched_is_refused() -> None:
    model, _ = build("mha", None)
    with pytest.raises(attn_plugins.UnsupportedModelError, match="patch it first"), attn_plugins.exportable(model):
        pass
    assert not plain.wanted()


def test_a_third_partys_normalizer_runs_as_it_is() -> None:
    with NORMALIZERS.temporarily(), torch.no_grad():
        attn_plugins.register_normalizer("relu_share")(relu_share)
        model, x = build("timm", "relu_share")
        attention = model.get_submodule("blocks.0.attn")
        with attn_plugins.exportable(model):
            program = torch.export.export(model, (x,))
            traced = torch.jit.trace(model, (x,))
            graph = torch.fx.symbolic_trace(attention)
        tokens = torch.randn(2, 7, 24)
        assert (program.module()(x) - model(x)).abs().max() <= 1e-5
        assert (traced(x) - model(x)).abs().max() <= 1e-5
        assert (graph(tokens) - attention(tokens)).abs().max() <= 1e-5


def relu_share(scores: Tensor, dim: int = -1) -> Tensor:
    return scores.relu() / (1 + scores.relu().sum(dim, keepdim=True)) + 0 * scores.softmax(dim)


@pytest.mark.slow
def test_compiled_inside_and_outside() -> None:
    model, x = build("timm", "entmax15")
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert (compiled(x) - expected).abs().max() <= 1e-5
        with attn_plugins.exportable(model):
            assert (compiled(x) - expected).abs().max() <= 1e-5
