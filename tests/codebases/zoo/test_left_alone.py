"""What computes no attention over keys is not patched by mistake, which would stop a model at its first forward."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_plugins

from .entries_dino import Mae
from .entry import DIM, SIDE, Host, built, one, tokens, user_warnings
from .negatives import Assignment
from .outcome import beside


class Deformable(nn.Module):
    """Deformable DETR and all after it: a linear layer weights the places that another one samples.

    The number of pixels is a product and a sum, and so is the weighted mean at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.n_heads = 1
        self.places, self.weights, self.v = nn.Linear(DIM, 8), nn.Linear(DIM, 4), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        shapes = torch.tensor([[SIDE, SIDE]])
        assert (shapes[:, 0] * shapes[:, 1]).sum() == x.shape[1]
        weights = F.softmax(self.weights(x), dim=-1)
        grid = self.places(x).unflatten(-1, (4, 2)).tanh()
        values = F.grid_sample(self.v(x).mT.unflatten(-1, (SIDE, SIDE)), grid, align_corners=False)
        return (values * weights[:, None]).sum(-1).mT


class AssignmentByName(Assignment):
    """NVlabs' GroupViT: the dimension stands in a local variable."""

    def get_attn(self, attn: Tensor) -> Tensor:
        dim = -2
        return F.softmax(attn, dim=dim)


@pytest.mark.parametrize("cls", [Deformable, Assignment, AssignmentByName])
def test_named_and_not_patched(cls: type[nn.Module]) -> None:
    assert beside(cls, one) == "named"


class Matcher(nn.Module):
    """Mask2Former's and EoMT's loss: class probabilities and products of masks, in a module that learns nothing."""

    num_heads = 1

    def forward(self, classes: Tensor, masks: Tensor) -> Tensor:
        return classes.softmax(-1)[..., 0].sum() - torch.matmul(masks, masks.mT).mean()


class WithLoss(nn.Module):
    """The trainer calls the criterion."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.criterion = Mae(), Matcher()

    def forward(self, x: Tensor) -> Any:
        return self.attn(x)


class WithTemperature(nn.Module):
    """OpenAI's CLIP: a product of features, a learned temperature, and another product."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.logit_scale = Mae(), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        y: Tensor = self.attn(x).mean(1)
        mixed = y @ y.mT
        return self.logit_scale.exp() * mixed @ y


@pytest.mark.parametrize("cls", [WithLoss, WithTemperature])
def test_nothing_else_is_named(cls: type[nn.Module]) -> None:
    model: Host = built(cls)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attn_plugins.patch(model, "entmax15")
    assert not user_warnings(caught)
    assert [line.path for line in attn_plugins.describe(model)] == ["attn.attn"]
    model(tokens().double())
