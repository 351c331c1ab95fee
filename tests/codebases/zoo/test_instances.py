"""What holds for a class need not hold for another instance of it: attributes decide, not what was seen before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_plugins

from .entries_masks import FusedOrNot, timm_fused
from .entries_spelling import InAttribute, spelled
from .entry import built, entmax15, made, one
from .outcome import REFUSALS, alone, beside
from .test_zoo import same


def exp_softmax(scores: Tensor, dim: int) -> Tensor:
    powers = scores.exp()
    return powers / powers.sum(dim, keepdim=True)


def with_act(act: Callable[..., Tensor]) -> InAttribute:
    module = InAttribute()
    module.act = act
    return module


def test_a_hidden_softmax_after_an_open_one() -> None:
    assert alone(InAttribute, one, spelled) == "answered"
    assert alone(lambda: with_act(exp_softmax), one) in REFUSALS
    assert beside(lambda: with_act(exp_softmax), one) in {*REFUSALS, "named"}


def test_an_open_softmax_after_a_hidden_one() -> None:
    assert alone(lambda: with_act(exp_softmax), one) in REFUSALS
    assert alone(InAttribute, one, spelled) == "answered"
    assert alone(lambda: with_act(torch.softmax), one, spelled) == "answered"
    assert alone(lambda: with_act(Tensor.softmax), one, spelled) == "answered"


class Layers(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]


@pytest.mark.parametrize("first", [True, False])
def test_fused_and_not_fused_in_one_model(first: bool) -> None:
    model, (x,) = built(lambda: Layers(FusedOrNot(first), FusedOrNot(not first))), made(one)
    attn_plugins.patch(model, "entmax15")
    same(model(x), [timm_fused(layer, entmax15, x) for layer in model.attn.layers])
    for layer in model.attn.layers:
        layer.fused_attn = not layer.fused_attn  # users switch it after the patch, too
    same(model(x), [timm_fused(layer, entmax15, x) for layer in model.attn.layers])


@pytest.mark.parametrize("acts", [(F.softmax, exp_softmax), (exp_softmax, F.softmax)])
def test_open_and_hidden_in_one_model(acts: tuple[Callable[..., Tensor], ...]) -> None:
    """The open one is entmax and the hidden one named, or all is refused or stopped."""
    model, (x,) = built(lambda: Layers(*map(with_act, acts))), made(one)
    before = model(x)
    hidden = acts.index(exp_softmax)
    try:
        with pytest.warns(UserWarning, match=rf"attn\.layers\.{hidden}"):
            attn_plugins.patch(model, "entmax15")
        out = model(x)
    except (attn_plugins.UnsupportedModelError, RuntimeError) as error:
        assert "layers" in str(error) or "InAttribute" in str(error)
        return
    assert torch.equal(out[hidden], before[hidden])
    same(out[1 - hidden], spelled(model.attn.layers[1 - hidden], entmax15, x))
