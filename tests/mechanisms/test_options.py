"""Options of mechanisms and of entmax_alpha: what the papers and codebases do, against their formulas."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

import attn_plugins

from .tiny_vits import HEADS, WIDTH, images, timm, trained


def outputs_of_projection(model: Any) -> list[tuple[Tensor, Tensor]]:
    """What enters each projection's linear map, and the block's normed input."""
    seen = []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
        block.attn.proj.register_forward_hook(lambda module, args, out: seen.append((args[0].detach(), out.detach())))
    model(images())
    return seen


@pytest.mark.parametrize("spec", ["gated:paper=true", "gated:headwise=true", "gated:headwise=true,paper=true"])
def test_gates_are_what_they_say(spec: str) -> None:
    model = attn_plugins.patch(timm(), spec).eval()
    gate = model.blocks[0].attn.proj.attn_plugins_gated
    paper, rows = "paper" in spec, HEADS if "headwise" in spec else WIDTH
    assert gate.weight.shape == (rows, WIDTH) and (gate.bias is None) == paper
    if paper:
        assert 0.015 < float(gate.weight.std()) < 0.025
    trained(model)
    normed, (entered, out) = outputs_of_projection(model)[:2]
    values = torch.sigmoid(normed @ gate.weight.T + (0 if paper else gate.bias)) * (1 if paper else 2)
    values = values.repeat_interleave(WIDTH // rows, -1)
    projection = model.blocks[0].attn.proj
    torch.testing.assert_close(out, F.linear(entered * values, projection.weight, projection.bias))


def test_the_papers_gate_starts_near_a_half_and_ours_at_one() -> None:
    for spec, expected in (("gated:paper=true", 0.5), ("gated", 1.0), ("gated:headwise=true", 1.0)):
        model = attn_plugins.patch(timm(), spec).eval()
        gates = model.blocks[0].attn.proj.attn_plugins_gated(torch.randn(50, WIDTH))
        assert gates.shape == (50, WIDTH) and float(gates.mean()) == pytest.approx(expected, abs=0.02)


def test_gates_a_head_need_heads() -> None:
    model = timm()
    for block in model.blocks:
        block.attn.num_heads = 7
    with pytest.raises(attn_plugins.UnsupportedModelError, match="48 channels and tells 7 heads"):
        attn_plugins.patch(model, "gated:headwise=true")


def test_registers_start_and_decay_as_asked() -> None:
    torch.manual_seed(0)
    for spec, std, name in (
        ("registers:num=64", 1e-6, "bias"),
        ("registers:num=64,std=0.02,decay=true", 0.02, "weight"),
    ):
        model = attn_plugins.patch(timm(), spec)
        (tokens,) = [(key, value) for key, value in model.named_parameters() if "registers" in key]
        assert tokens[0] == f"attn_plugins_registers.register_tokens.{name}"
        assert float(tokens[1].std()) == pytest.approx(std, rel=0.1)
        assert model(images()).shape == (2, WIDTH)
    with pytest.raises(ValueError, match="std=0"):
        attn_plugins.patch(timm(), "registers:std=0")


def test_alphas_are_drawn_as_the_authors_draw_them() -> None:
    torch.manual_seed(0)
    layers = [attn_plugins.functional.EntmaxAlpha(64, drawn=True) for _ in range(8)]
    logits = torch.cat([layer.logit.detach() for layer in layers])
    assert stats.kstest(logits.numpy(), "norm").pvalue > 0.001
    model = attn_plugins.patch(timm(), "entmax_alpha:drawn=true")
    alphas = torch.cat([block.attn.attn_plugins_normalizer.alpha for block in model.blocks])
    assert len(alphas.unique()) == len(alphas) == 3 * HEADS
    assert model(images()).isfinite().all()
