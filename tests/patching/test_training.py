"""Training patched models: seeds, autocast, gradient checkpointing, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import entmax
import pytest
import torch
from codebases.twin import assert_same_outputs, normalized_by
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attn_plugins

from .models import images, tiny_vit


def gradients(model: nn.Module, run: Callable[[], Tensor]) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    run().square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def assert_all_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected) > 0
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("spec", "normalizer"), [("softmax", torch.softmax), ("entmax15", entmax.entmax15)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_and_dropout(spec: str, normalizer: Callable[..., Tensor], dropout: float) -> None:
    model, x = tiny_vit(dropout=dropout).train(), images()
    with normalized_by(normalizer):
        expected = gradients(model, lambda: model(x))
    attn_plugins.patch(model, spec)
    assert_all_close(gradients(model, lambda: model(x)), expected)


def test_alpha_learns_in_train_mode_and_rests_in_eval_mode() -> None:
    model, x = attn_plugins.patch(tiny_vit(), "entmax_alpha").train(), images()
    normalizer = model.get_submodule("blocks.0.attn.attn_plugins_normalizer")
    logit = normalizer.get_parameter("logit")
    assert normalizer.training
    model(x).square().mean().backward()
    assert logit.grad is not None and logit.grad.abs().min() > 0
    assert not model.eval().get_submodule("blocks.0.attn.attn_plugins_normalizer").training
    attn_plugins.patch(model, "entmax_alpha:learnable=false")
    assert not model.get_parameter("blocks.0.attn.attn_plugins_normalizer.logit").requires_grad


@pytest.mark.parametrize("spec", ["softmax", "entmax15", "entmax_alpha"])
def test_autocast(spec: str) -> None:
    model, x = attn_plugins.patch(tiny_vit(), spec), images()
    full = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.1)
    half.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("spec", ["entmax15", "entmax_alpha"])
def test_gradient_checkpointing(spec: str, reentrant: bool) -> None:
    model, x = attn_plugins.patch(tiny_vit(dropout=0.2), spec).train(), images().requires_grad_()

    def recomputed() -> Tensor:
        y = model.embed(x)
        for block in model.blocks:
            y = checkpoint(block, y, use_reentrant=reentrant)
        return y

    assert_all_close(gradients(model, recomputed), gradients(model, lambda: model(x)))


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["entmax15", "entmax_alpha", "entmax:alpha=1.3"])
def test_torch_compile_in_one_graph(spec: str) -> None:
    model, x = attn_plugins.patch(tiny_vit(depth=2), spec), images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_all_close(gradients(model, lambda: compiled(x)), gradients(model, lambda: model(x)))
    torch.compiler.reset()


@pytest.mark.slow
def test_torch_compile_with_inductor() -> None:
    model, x = attn_plugins.patch(tiny_vit(depth=1), "entmax15"), images()
    compiled = torch.compile(model, fullgraph=True)
    assert_all_close(gradients(model, lambda: compiled(x)), gradients(model, lambda: model(x)))
    torch.compiler.reset()


@pytest.mark.slow
def test_torch_compile_with_checkpointing() -> None:
    model, x = attn_plugins.patch(tiny_vit(depth=1), "entmax15").train(), images().requires_grad_()

    def recomputed(x: Tensor) -> Tensor:
        out: Tensor = checkpoint(model.blocks[0], model.embed(x), use_reentrant=False)
        return out

    compiled = torch.compile(recomputed, fullgraph=True, backend="aot_eager")
    assert_all_close(gradients(model, lambda: compiled(x)), gradients(model, lambda: model(x)))
    torch.compiler.reset()


def test_patching_after_compiling_is_seen() -> None:
    model, x = tiny_vit(depth=1), images()
    with normalized_by(entmax.entmax15):
        sparse = model(x)
    dense = model(x)
    compiled: Any = torch.compile(model, backend="aot_eager")
    assert_same_outputs(compiled, dense, lambda m: m(x))
    attn_plugins.patch(compiled, "entmax15")
    assert_same_outputs(compiled, sparse, lambda m: m(x))
    attn_plugins.unpatch(compiled)
    assert_same_outputs(compiled, dense, lambda m: m(x))
    torch.compiler.reset()


def test_vmap_over_models() -> None:
    model, x = attn_plugins.patch(tiny_vit(depth=1), "entmax15"), images()
    weights = {name: torch.stack([p, 2 * p]).detach() for name, p in model.named_parameters()}
    both = torch.func.vmap(lambda w: torch.func.functional_call(model, w, (x,)))(weights)
    torch.testing.assert_close(both[0], model(x), atol=1e-5, rtol=1e-4)
