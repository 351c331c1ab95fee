"""The official DINO, DINOv2 and DINOv3 ViTs and lightly-train's, patched, against their own code and entmax.

The official repositories are used where DINO_ROOT, DINOV2_ROOT and DINOV3_ROOT name checkouts of them.
"""

from __future__ import annotations

from typing import Any

import entmax
import pytest
import torch
from mechanisms.tiny_vits import FAMILIES, SIZE, WIDTH, images, trained, without_xformers
from torch import Tensor, nn

import attn_plugins

from .twin import assert_same_outputs, normalized_by

ADAPTERS = {
    "dinov1": "dinov1",
    "dinov2": "dinov2",
    "dinov3": "sdpa",
    "lightly-dinov2": "dinov2",
    "lightly-dinov3": "sdpa",
}


def build(name: str, **options: Any) -> Any:
    return trained(FAMILIES[name].build(**options))


@pytest.mark.parametrize("name", ADAPTERS)
def test_softmax_and_entmax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = build(name), images()
    without_xformers(model, monkeypatch)
    read = FAMILIES[name].read

    def train_step(model: nn.Module) -> Tensor:
        torch.manual_seed(1)
        out: Tensor = model.train()(image)
        return out

    dense, stepped = read(model, image), train_step(model)
    model.eval()
    with normalized_by(entmax.entmax15):
        sparse = read(model, image)
    assert (sparse[1] - dense[1]).abs().max() > 1e-2
    attn_plugins.patch(model, "softmax")
    assert [line.adapter for line in attn_plugins.describe(model)] == [ADAPTERS[name]] * len(model.blocks)
    assert_same_outputs(model, dense, lambda m: read(m, image))
    assert_same_outputs(model, stepped, train_step)
    attn_plugins.patch(model.eval(), "entmax15")
    assert_same_outputs(model, sparse, lambda m: read(m, image))
    attn_plugins.unpatch(model)
    assert all(torch.equal(a, b) for a, b in zip(read(model, image), dense, strict=True))


@pytest.mark.parametrize("name", ["dinov1", "lightly-dinov2"])
def test_dropout_of_attention_weights_draws_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = build(name, **({"attn_drop_rate": 0.3} if name == "dinov1" else {})), images()
    without_xformers(model, monkeypatch)
    for module in model.modules():
        if isinstance(getattr(module, "attn_drop", None), nn.Dropout):
            module.attn_drop.p = 0.3
    model.train()

    def step(model: nn.Module) -> Tensor:
        torch.manual_seed(1)
        out: Tensor = model(image)
        return out

    dense = step(model)
    with normalized_by(entmax.entmax15):
        sparse = step(model)
    attn_plugins.patch(model, "softmax")
    assert_same_outputs(model, dense, step)
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, sparse, step)


def test_dinov1_last_selfattention_is_the_map_that_was_used() -> None:
    model, image = build("dinov1"), images()
    dense = model.get_last_selfattention(image)
    with normalized_by(entmax.entmax15):
        sparse = model.get_last_selfattention(image)
    attn_plugins.patch(model, "softmax")
    assert_same_outputs(model, dense, lambda m: m.get_last_selfattention(image))
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, sparse, lambda m: m.get_last_selfattention(image))
    assert (model.get_last_selfattention(image) == 0).float().mean() > 0.1


def test_dinov1_computes_no_map_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = build("dinov1"), images()
    attn_plugins.patch(model, "entmax15")
    attention, maps = model.blocks[0].attn, []
    forward = type(attention).forward

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        maps.append(forward(self, *args, **kwargs)[1])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(attention), "forward", spy)
    model(image)
    assert maps == [None] * len(model.blocks)
    seen = []
    attention.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    model(image)
    assert isinstance(seen[0], Tensor)
    y, weights = attention(torch.randn(1, 4, WIDTH))  # on its own it returns both, as upstream
    assert y.shape == (1, 4, WIDTH) and weights.shape == (1, 3, 4, 4)


@pytest.mark.parametrize("name", ["dinov2", "lightly-dinov2"])
def test_dinov2_packs_crops_of_several_sizes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of crops goes through all blocks in one packed row of tokens; each must come out as if alone."""
    pytest.importorskip("xformers", reason="DINOv2 builds the masks of packed batches with xformers")
    model = build(name, ffn_bias=True)
    crops, masks = [images(2, SIZE), images(3, SIZE // 2)], [None, None]
    with monkeypatch.context() as patched:
        without_xformers(model, patched)
        with normalized_by(entmax.entmax15):
            alone = [model.forward_features(crop)["x_norm_patchtokens"] for crop in crops]
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(
        model, alone, lambda m: [out["x_norm_patchtokens"] for out in m.forward_features_list(crops, masks)], atol=3e-5
    )
    outputs = model.train().forward_features_list(crops, masks)
    sum(out["x_norm_clstoken"].square().sum() for out in outputs).backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["dinov2", "lightly-dinov2"])
def test_dinov2_attention_takes_a_list_of_lengths(name: str) -> None:
    attention = attn_plugins.patch(build(name), "sparsemax").blocks[0].attn
    long, short = torch.randn(2, 7, WIDTH), torch.randn(3, 4, WIDTH)
    packed = attention(torch.cat([long.flatten(0, 1), short.flatten(0, 1)])[None], attn_bias=[7, 7, 4, 4, 4])
    torch.testing.assert_close(packed[0, :14].view_as(long), attention(long))
    torch.testing.assert_close(packed[0, 14:].view_as(short), attention(short))


@pytest.mark.parametrize("name", ["dinov3", "lightly-dinov3"])
def test_dinov3_forward_list_keeps_rope(name: str) -> None:
    model = build(name, n_storage_tokens=4)
    crops, masks = [images(2, SIZE), images(3, SIZE // 2)], [None, None]

    def features(model: Any) -> list[Tensor]:
        return [out["x_norm_patchtokens"] for out in model.forward_features_list(crops, masks)]

    dense = features(model)
    with normalized_by(entmax.entmax15):
        sparse = features(model)
    attn_plugins.patch(model, "softmax")
    assert_same_outputs(model, dense, features)
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, sparse, features)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_torch_compile_forward_and_backward(name: str) -> None:
    """Whole blocks in one graph; some of these models build position embeddings in a way that is not one graph."""
    torch.manual_seed(0)
    block = attn_plugins.patch(build(name).blocks[0].train(), "entmax15")
    x = torch.randn(2, 6, WIDTH)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (block, compiled):
        block.zero_grad()
        torch.manual_seed(1)
        run(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in block.parameters() if p.grad is not None])
    torch.compiler.reset()
    assert len(gradients[0]) == len(gradients[1]) > 4
    for eager, graph in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, graph)
