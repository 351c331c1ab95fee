"""A factor for each head is what projections of the query that were multiplied by hand do, in every codebase."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attn_plugins
from attn_plugins import UnsupportedModelError
from attn_plugins.adapt.calibrate import calibrate
from attn_plugins.patching import find_attention

from .tiny_vits import DEPTH, FAMILIES, HEADS, WIDTH, images, trained, without_xformers

FACTORS = torch.tensor([[0.2, 0.5, 1.5], [0.3, 0.9, 0.1], [2.0, 0.4, 0.7]])


def built(family: str) -> Any:
    return trained(FAMILIES[family].build())


def read(family: str, model: nn.Module) -> Tensor:
    return torch.cat([t.flatten(1) for t in FAMILIES[family].read(model, images())], 1)


def multiply_queries(model: nn.Module) -> None:
    """Every head's rows of the projection to queries, by its factor."""
    for layer, site in enumerate(find_attention(model)):
        rows = FACTORS[layer].repeat_interleave(WIDTH // HEADS)
        module: Any = site.module
        projection = getattr(module, "qkv", None) or getattr(module, "q_proj", None) or module.query
        for tensor in projection.parameters(recurse=False):
            tensor.data[:WIDTH].mul_(rows.view(-1, *[1] * (tensor.dim() - 1)))


def put_factors(model: nn.Module) -> None:
    for site, factors in zip(find_attention(model), FACTORS, strict=True):
        site.module.get_buffer("attn_plugins_normalizer.log_scale").data.copy_(factors.log())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_a_multiplied_query(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(family)
    without_xformers(model, monkeypatch)
    before, by_hand = read(family, model), copy.deepcopy(model)
    multiply_queries(by_hand)
    attn_plugins.patch(by_hand, "entmax15")
    attn_plugins.patch(model, "entmax15:scale=per_head")
    put_factors(model)
    torch.testing.assert_close(read(family, model), read(family, by_hand), rtol=1e-3, atol=1e-4)
    assert len(find_attention(model)) == DEPTH
    assert torch.equal(read(family, attn_plugins.unpatch(model)), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_asentmax_starts_as_the_normalizer(family: str) -> None:
    model = built(family)
    expected = read(family, attn_plugins.patch(copy.deepcopy(model), "entmax15"))
    try:
        found = read(family, attn_plugins.patch(model, "entmax15:scale=asentmax"))
    except UnsupportedModelError as error:
        assert "use a fused path" in str(error)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_calibrated(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(family)
    without_xformers(model, monkeypatch)
    found = calibrate(model, images(3))
    assert len(found.scales.layers) == DEPTH and found.after[0].centred > found.before[0].centred
