"""Resampling of positions by tensor operations: what `F.interpolate` computes, and symbols for sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attn_plugins.codebases.positions import positions_by_tensors, resampled


def interpolated(tokens: Tensor, side: int, h: int, w: int, offset: float, antialias: bool) -> Tensor:
    """As DINOv2's `interpolate_pos_encoding` does."""
    if (h, w) == (side, side):
        return tokens
    grid = tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    to: dict[str, object] = {"size": (h, w)}
    if offset:
        to = {"scale_factor": ((h + offset) / side, (w + offset) / side)}
    grid = nn.functional.interpolate(grid, mode="bicubic", antialias=antialias, **to)  # type: ignore[arg-type]
    return torch.cat([tokens[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize("side", [2, 7, 16, 37])
@pytest.mark.parametrize(("offset", "antialias"), [(0.1, False), (0.0, False), (0.0, True)])
def test_it_is_torchs_own(side: int, offset: float, antialias: bool) -> None:
    tokens = torch.randn(1, 1 + side * side, 6, generator=torch.Generator().manual_seed(side))
    for h, w in ((side, side), (side, 9), (2, 3), (40, 5), (16, 37)):
        expected = interpolated(tokens, side, h, w, offset, antialias)
        torch.testing.assert_close(resampled(tokens, h, w, offset, antialias), expected, atol=5e-5, rtol=0)
    assert torch.equal(resampled(tokens, side, side, offset, antialias), tokens)


class Official(nn.Module):
    """What `positions_by_tensors` looks for, of DINOv1."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 6))
        self.patch_embed = nn.Conv2d(3, 6, 4, 4)
        self.patch_embed.patch_size = 4  # type: ignore[assignment]

    def interpolate_pos_encoding(self, x: Tensor, rows: int, columns: int) -> Tensor:
        return interpolated(self.pos_embed, 4, rows // 4, columns // 4, 0.1, False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([x[:, :1], x], dim=1)
        return x + self.interpolate_pos_encoding(x, images.shape[2], images.shape[3])


class Recorded(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with positions_by_tensors(self.model):
            return self.model(images)  # type: ignore[no-any-return]


def test_a_program_is_of_any_size_and_the_model_stays_as_it_was() -> None:
    model = Official().eval()
    before = dict(vars(model)), set(model._parameters)
    sides = {2: 4 * torch.export.Dim("h", min=2, max=99), 3: 4 * torch.export.Dim("w", min=2, max=99)}
    with torch.no_grad():
        program = torch.export.export(Recorded(model), (torch.zeros(2, 3, 24, 36),), dynamic_shapes=(sides,))
        assert (dict(vars(model)), set(model._parameters)) == before
        for h, w in ((16, 16), (12, 80), (28, 16)):
            images = torch.randn(2, 3, h, w)
            torch.testing.assert_close(program.module()(images), model(images), atol=5e-5, rtol=0)
    with pytest.raises(KeyError), positions_by_tensors(model):
        raise KeyError
    assert (dict(vars(model)), set(model._parameters)) == before


def test_other_models_are_left_alone() -> None:
    model = nn.Linear(2, 2)
    before = dict(vars(model))
    with positions_by_tensors(model):
        assert dict(vars(model)) == before
