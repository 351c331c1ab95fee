"""``torch.fx.symbolic_trace``: the patched layer's graph computes what the layer does, or one clear error."""

from __future__ import annotations

import pytest
import torch
from export.models import SPECS, HandWritten, build
from torch import Tensor, nn

import attn_plugins

pytest.importorskip("timm", reason="timm (the probes extra) is not installed")

every_spec = pytest.mark.parametrize("spec", [*SPECS, "entmax15+registers:num=2"])


@every_spec
@pytest.mark.parametrize("part", ["attention", "block"])
def test_equals_the_layer(spec: str, part: str) -> None:
    model, x = build("timm", spec)
    layer = model.get_submodule("blocks.0.attn" if part == "attention" else "blocks.0")
    with attn_plugins.exportable(model):
        graph = torch.fx.symbolic_trace(layer)
    with torch.no_grad():
        model(x)  # the first block with registers takes tokens from now on
        tokens = torch.randn(3, 19, 24)
        assert (graph(tokens) - layer(tokens)).abs().max() <= 1e-5


def test_a_mask_after_tracing_without_one_is_refused() -> None:
    model, _ = build("timm", "entmax15")
    layer, tokens = model.get_submodule("blocks.0.attn"), torch.randn(2, 5, 24)
    with attn_plugins.exportable(model):
        graph = torch.fx.symbolic_trace(layer)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    with pytest.raises(AssertionError, match="attn_mask=None"):
        graph(tokens, torch.ones(5, 5).bool())
    with pytest.raises(AssertionError, match="is_causal=False"):
        graph(tokens, None, True)


def test_causal() -> None:
    model, _ = build("timm", "entmax15")
    layer, tokens = model.get_submodule("blocks.0.attn"), torch.randn(2, 5, 24)
    with attn_plugins.exportable(model):
        graph = torch.fx.symbolic_trace(layer, concrete_args={"attn_mask": None, "is_causal": True})
    assert (graph(tokens, None, True) - layer(tokens, None, True)).abs().max() <= 1e-5


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask > 0)


class Both(nn.Module):
    """SDPA in one branch and an ``nn.Softmax`` in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.attend = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        fused = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = fused + self.attend(q @ k.transpose(-2, -1)) @ v
        return out


def test_a_computed_mask_is_one_clear_error() -> None:
    layer = attn_plugins.patch(Masked(), "entmax15")
    with attn_plugins.exportable(layer), pytest.raises(attn_plugins.UnsupportedModelError, match="concrete_args"):
        torch.fx.symbolic_trace(layer)


@pytest.mark.parametrize("make", [HandWritten, Both])
def test_softmax_that_proxies_hide_is_one_clear_error(make: type[nn.Module]) -> None:
    model = attn_plugins.patch(make(), "entmax15")
    with (
        attn_plugins.exportable(model),
        pytest.raises(attn_plugins.UnsupportedModelError, match=r"torch\.export\.export"),
    ):
        torch.fx.symbolic_trace(model)


@pytest.mark.parametrize("name", ["timm", "softmax"])
def test_outside_is_refused(name: str) -> None:
    model, _ = build(name, "entmax15")
    layer = next(module for module in model.modules() if hasattr(module, "attn_plugins_normalizer"))
    with pytest.raises(attn_plugins.UnsupportedModelError, match="exportable"):
        torch.fx.symbolic_trace(layer)


def test_attention_itself() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attn_plugins.attention(q, k, v, normalizer="entmax15", enable_gqa=True)
        return out

    with pytest.raises(attn_plugins.UnsupportedModelError, match="exportable"):
        torch.fx.symbolic_trace(function)
    model, _ = build("mha", "entmax15")
    with attn_plugins.exportable(model):
        graph = torch.fx.symbolic_trace(function)
    q, k = torch.randn(2, 4, 5, 8, dtype=torch.float64), torch.randn(2, 2, 5, 8, dtype=torch.float64)
    assert (graph(q, k, k) - function(q, k, k)).abs().max() <= 1e-6
    assert graph(q, k, k).dtype == torch.float64
