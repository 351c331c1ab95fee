"""torch.nn.MultiheadAttention with all its options, alone and inside torch's own encoder and torchvision's ViT."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import entmax
import pytest
import torch
import torchvision
from torch import Tensor, nn

import attn_plugins

from .twin import assert_same_outputs, normalized_by

B, N, S, E, H = 3, 5, 6, 24, 4


def forward(mha: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(1)
    q, k, v = torch.randn(B, N, E), torch.randn(B, S, mha.kdim), torch.randn(B, S, mha.vdim)
    if not mha.batch_first:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    torch.manual_seed(2)
    out: tuple[Tensor, Tensor | None] = mha(q, k, v, **options)
    return out


CONSTRUCTION: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"bias": False, "kdim": 10, "vdim": 14},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    {"dropout": 0.4},
]
PADDING = torch.tensor([[False] * S, [False] * 4 + [True] * 2, [True] + [False] * 5])
CALLS: list[dict[str, Any]] = [
    {},
    {"need_weights": False},
    {"average_attn_weights": False},
    {"key_padding_mask": PADDING},
    {"key_padding_mask": PADDING, "need_weights": False, "attn_mask": torch.zeros(N, S).masked_fill(PADDING[1], -9.0)},
    {"attn_mask": torch.randn(B * H, N, S, generator=torch.Generator().manual_seed(0)), "average_attn_weights": False},
    {"attn_mask": torch.ones(N, S, dtype=torch.bool).triu(1), "is_causal": True, "need_weights": False},
]


@pytest.mark.parametrize(("construction", "call"), itertools.product(CONSTRUCTION, CALLS))
def test_every_option(construction: dict[str, Any], call: dict[str, Any]) -> None:
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(E, H, **construction)  # in training mode, with gradients: never the fast path
    dense = forward(mha, **call)
    with normalized_by(entmax.entmax15):
        sparse = forward(mha, **call)
    assert not torch.allclose(dense[0], sparse[0])
    attn_plugins.patch(mha, "softmax")
    assert_same_outputs(mha, dense, lambda m: forward(m, **call))
    attn_plugins.patch(mha, "entmax15")
    assert_same_outputs(mha, sparse, lambda m: forward(m, **call))
    attn_plugins.patch(mha, "entmax_alpha:init=1.5")
    assert_same_outputs(mha, sparse, lambda m: forward(m, **call))


def test_returned_weights_are_sparse_and_sum_to_one() -> None:
    mha = attn_plugins.patch(nn.MultiheadAttention(E, H), "sparsemax").eval()
    weights = forward(mha, average_attn_weights=False)[1]
    assert weights is not None and weights.shape == (B, H, N, S)
    assert (weights == 0).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, N))


def test_unbatched_input() -> None:
    mha = nn.MultiheadAttention(E, H)
    q = torch.randn(N, E)
    dense = mha(q, q, q)
    attn_plugins.patch(mha, "softmax")
    assert_same_outputs(mha, dense, lambda m: m(q, q, q))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_fast_path_of_the_encoder_is_not_taken(norm_first: bool, padded: bool) -> None:
    """In eval mode without gradients torch runs a whole layer in one kernel, and nests padded batches."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 32, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x = torch.randn(B, S, E)
    mask = torch.tensor([[False] * S, [False] * 4 + [True] * 2, [False] * 3 + [True] * 3]) if padded else None

    def real_tokens(model: nn.Module) -> Tensor:
        out: Tensor = (
            model(x, src_key_padding_mask=mask) if mask is None else model(x, src_key_padding_mask=mask)[~mask]
        )
        return out

    with normalized_by(entmax.entmax15):  # with gradients, so that torch takes its ordinary path
        sparse = real_tokens(encoder)
    dense = real_tokens(encoder)
    assert not torch.allclose(sparse, dense, atol=1e-4)
    with torch.no_grad():
        fast = real_tokens(encoder)
        attn_plugins.patch(encoder, "entmax15")
        assert_same_outputs(encoder, sparse, real_tokens)
        attn_plugins.patch(encoder, "softmax")
        assert_same_outputs(encoder, dense, real_tokens)
        attn_plugins.unpatch(encoder)
        assert torch.equal(real_tokens(encoder), fast)
    assert all(type(m).__module__.startswith("torch.nn") for m in encoder.modules())


@pytest.mark.parametrize("gradients", [True, False])
def test_torchvision(gradients: bool) -> None:
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(32, 8, 2, H, E, 48, num_classes=5, attention_dropout=0.1)
    nn.init.normal_(vit.heads.head.weight)
    image = torch.randn(2, 3, 32, 32)

    def train_step(model: nn.Module) -> Tensor:
        torch.manual_seed(3)
        out: Tensor = model.train()(image)
        return out

    dense, trained = vit.eval()(image), train_step(vit)
    with normalized_by(entmax.entmax15):
        sparse = vit.eval()(image)
    with torch.set_grad_enabled(gradients):
        attn_plugins.patch(vit, "softmax")
        assert_same_outputs(vit, dense, lambda m: m.eval()(image))
        assert_same_outputs(vit, trained, train_step)
        attn_plugins.patch(vit, "entmax15")
        assert_same_outputs(vit, sparse, lambda m: m.eval()(image))
    assert [line.adapter for line in attn_plugins.describe(vit)] == ["multihead_attention"] * 2


def test_mmsegmentation() -> None:
    mmseg = pytest.importorskip("mmseg.models", reason="mmsegmentation (the probes extra) is not installed")
    torch.manual_seed(0)
    vit = mmseg.VisionTransformer(
        img_size=32, patch_size=8, embed_dims=E, num_layers=2, num_heads=H, out_indices=(0, 1)
    )
    vit.init_weights()
    vit.eval()
    image = torch.randn(2, 3, 32, 32)
    dense = vit(image)
    with normalized_by(entmax.entmax15):
        sparse = vit(image)
    with torch.no_grad():
        attn_plugins.patch(vit, "softmax")
        assert_same_outputs(vit, dense, lambda m: m(image))
        attn_plugins.patch(vit, "entmax15")
        assert_same_outputs(vit, sparse, lambda m: m(image))


@pytest.mark.slow
def test_torch_compile() -> None:
    mha = attn_plugins.patch(nn.MultiheadAttention(E, H, batch_first=True), "entmax15")
    compiled: Any = torch.compile(mha, fullgraph=True, backend="aot_eager")
    for call in (forward, partial(forward, need_weights=False)):
        assert_same_outputs(compiled, call(mha), call)
    torch.compiler.reset()
