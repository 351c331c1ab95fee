"""verify: what it says of right models and of wrong ones, and that it leaves them alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.tiny_vit import Attention, TinyViT
from torch import Tensor, nn
from torch.nn import functional as F

import attn_plugins

from .models import images, snapshot, tiny_vit


@pytest.mark.parametrize("spec", ["softmax", "entmax15", "sparsemax", "entmax_alpha"])
def test_a_right_model(spec: str) -> None:
    result = attn_plugins.verify(attn_plugins.patch(tiny_vit(), spec), images())
    assert result.ok and result.spec == spec and result.softmax < 1e-5
    assert [(line.path, line.spec, line.answered) for line in result] == [
        (f"blocks.{n}.attn", spec, 1) for n in range(4)
    ]
    for line in result:
        assert line.row_sums is not None and line.row_sums < 1e-5
        assert line.difference is not None and line.difference < 1e-4
        assert line.zeros is not None and (line.zeros > 0.05) == (spec != "softmax")
    assert "verified: every layer computes" in str(result)
    assert result.record()["ok"] is True


def test_the_model_and_the_world_stay_as_they_were() -> None:
    class Noisy(TinyViT):
        """Draws numbers and counts its forwards in a buffer."""

        def __init__(self) -> None:
            super().__init__(dropout=0.3)
            self.count: Tensor
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return super().forward(x + 0.01 * torch.randn_like(x))

    model = attn_plugins.patch(Noisy().train(), "entmax_alpha")
    model.blocks[1].eval()
    before, generator = snapshot(model), torch.get_rng_state()
    result = attn_plugins.verify(model, images())
    assert result.ok, result.problems
    assert snapshot(model) == before and torch.equal(torch.get_rng_state(), generator)


def test_a_layer_without_attention_raises_and_leaves_the_model_as_it_was() -> None:
    model = attn_plugins.patch(tiny_vit(), "entmax15")
    model.get_submodule("blocks.2.attn").forward = lambda x: x
    before = [(type(module), module.training) for module in model.modules()]
    with pytest.raises(attn_plugins.UnsupportedModelError, match="computed no attention"):
        attn_plugins.verify(model, images())
    assert [(type(module), module.training) for module in model.modules()] == before


class Apart(nn.Module):
    """Softmax attention that the model's own code computes where no one looks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Attention()
        self.steps: list[Any] = [getattr(F, name) for name in ("scaled_dot_product_attention",)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        for step in self.steps:
            x = step(x[:, None], x[:, None], x[:, None])[:, 0]
        return x


def test_softmax_that_nobody_answered_is_found() -> None:
    model = Apart().eval()
    attn_plugins.patch(model, "entmax15", layers=lambda path, module: path == "block")
    result = attn_plugins.verify(model, torch.randn(3, 9, 16))
    assert not result.ok and result.unanswered == ("the model (Apart)",)
    assert "the model (Apart): computes softmax and is not patched" in str(result)


def test_layers_that_were_left_out_are_no_problem() -> None:
    result = attn_plugins.verify(attn_plugins.patch(tiny_vit(), "entmax15", layers=[1]), images())
    assert result.ok and [line.path for line in result] == ["blocks.1.attn"]


def test_what_cannot_be_verified_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="TinyViT is not patched"):
        attn_plugins.verify(tiny_vit(), images())
    compiled: Any = torch.compile(attn_plugins.patch(tiny_vit(), "entmax15"), backend="eager")
    with pytest.raises(attn_plugins.UnsupportedModelError, match="is OptimizedModule"):
        attn_plugins.verify(compiled, images())
    model = attn_plugins.patch(tiny_vit(), "entmax15")
    model.blocks[0].compile(backend="eager")
    with pytest.raises(attn_plugins.UnsupportedModelError, match=r"blocks\.0 is compiled"):
        attn_plugins.verify(model, images())


def test_mechanisms_stay_in_the_comparison_with_softmax() -> None:
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    attn_plugins.patch(model, "entmax15+registers:num=2+gated+context_broadcasting")
    result = attn_plugins.verify(model, torch.randn(2, 3, 32, 32))
    assert result.ok and len(result) == 3, result.problems


def test_a_wrong_kernel_is_told() -> None:
    from attn_plugins.attention import reference
    from attn_plugins.attention.backend import BACKENDS

    model = attn_plugins.patch(tiny_vit(), "entmax15")
    with BACKENDS.temporarily():
        attn_plugins.register_backend(attn_plugins.Backend("wrong", lambda call: reference.run(call) * 1.01))
        result = attn_plugins.verify(copy.deepcopy(model), images())
    assert not result.ok and "is off the reference by 1.0e-02" in result.problems[0]
