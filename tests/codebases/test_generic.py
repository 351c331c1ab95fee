"""Attention that no codebase adapter knows: which classes the general adapters take, and which they leave."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import entmax
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

import attn_plugins
from attn_plugins.codebases import Adapter, adapter_for, register_adapter
from attn_plugins.registry import ADAPTERS

from .twin import assert_same_outputs, normalized_by

DIM, HEADS = 24, 3


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


def helper(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class ByName(Projected):
    def forward(self, x: Tensor) -> Tensor:
        return scaled_dot_product_attention(*self.heads(x)).transpose(1, 2).flatten(2)


class ByKeywords(Projected):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        out = torch.nn.functional.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask, scale=0.9)
        return out.transpose(1, 2).flatten(2)


class ByPosition(Projected):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.heads(x), None, 0.0, True).transpose(1, 2).flatten(2)


class InAHelper(Projected):
    def forward(self, x: Tensor) -> Tensor:
        return helper(*self.heads(x)).transpose(1, 2).flatten(2)


class InAComprehension(Projected):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        outs = [F.scaled_dot_product_attention(q[:, h], k[:, h], v[:, h]) for h in range(HEADS)]
        return torch.cat(outs, -1)


class InAnotherMethod(Projected):
    def attend(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*self.heads(x)).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)


class GroupedQueries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM // HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.kv(x)[:, None].chunk(2, -1)
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


class Materialised(Projected):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        weights = (q @ k.transpose(-2, -1)).softmax(-1, torch.float32)
        return (weights @ v).transpose(1, 2).flatten(2)


class WithModule(Projected):
    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        weights = self.softmax(torch.einsum("bhnd,bhsd->bhns", q, k))
        return torch.einsum("bhns,bhsd->bnhd", weights, v).flatten(2)


@pytest.mark.parametrize(
    ("cls", "adapter"),
    [
        (ByName, "sdpa"),
        (ByKeywords, "sdpa"),
        (ByPosition, "sdpa"),
        (InAHelper, "sdpa"),
        (InAComprehension, "sdpa"),
        (InAnotherMethod, "sdpa"),
        (GroupedQueries, "sdpa"),
        (Materialised, "softmax"),
        (WithModule, "softmax"),
    ],
)
def test_classes_that_are_known(cls: type[nn.Module], adapter: str) -> None:
    torch.manual_seed(0)
    model: Any = cls().eval()
    x = 3 * torch.randn(2, 7, DIM)
    found = adapter_for(cls())
    assert found is not None and found[0].name == adapter
    dense = model(x)
    if cls is not GroupedQueries:
        with (
            normalized_by(entmax.entmax15),
            mock.patch.object(sys.modules[__name__], "scaled_dot_product_attention", F.scaled_dot_product_attention),
        ):
            sparse = model(x)
    else:
        q = model.q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = model.kv(x)[:, None].chunk(2, -1)
        weights = entmax.entmax15(q @ k.transpose(-2, -1) * (DIM // HEADS) ** -0.5, -1)
        sparse = (weights @ v).transpose(1, 2).flatten(2)
    attn_plugins.patch(model, "softmax")
    assert_same_outputs(model, dense, lambda m: m(x))
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, sparse, lambda m: m(x))


class LinearAttention(Projected):
    """Softmax over the tokens of k, before any product: no row of weights to make sparse."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return (q @ (k.softmax(dim=2).transpose(-2, -1) @ v)).transpose(1, 2).flatten(2)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.query(x).softmax(-1)
        return out


class Replaced(ByName):
    """A subclass that does away with its base's attention."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.qkv(x)
        return out


@pytest.mark.parametrize("cls", [LinearAttention, Classifier, Replaced, nn.Linear, nn.TransformerEncoderLayer])
def test_classes_that_are_left_alone(cls: type) -> None:
    assert adapter_for(cls() if cls not in (nn.Linear, nn.TransformerEncoderLayer) else cls(2, 2)) is None


def test_a_parameter_per_head_needs_to_know_the_heads() -> None:
    with pytest.raises(ValueError, match="number of heads"):
        attn_plugins.patch(Materialised(), "entmax_alpha")


def test_other_softmaxes_are_left_alone() -> None:
    class Mixed(Projected):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.heads(x)
            gate = x.softmax(dim=1)
            return gate * ((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)

    model, x = Mixed(), torch.randn(2, 7, DIM)
    gate = x.softmax(1)
    with normalized_by(entmax.entmax15):
        q, k, v = model.heads(x)
        attended = ((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, gate * attended, lambda m: m(x))


def test_torchvision_swin() -> None:
    torch.manual_seed(0)
    model = torchvision.models.SwinTransformer([4, 4], 24, [2], [3], [4, 4], num_classes=5).eval()
    image = torch.randn(1, 3, 32, 32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
    dense = model(image)
    with normalized_by(entmax.entmax15):
        sparse = model(image)
    assert not torch.allclose(dense, sparse, atol=1e-4)
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, sparse, lambda m: m(image))


@pytest.fixture
def no_new_adapters() -> Any:
    with ADAPTERS.temporarily():
        yield


def test_a_third_party_adapter_comes_before_ours(no_new_adapters: None) -> None:
    def overrides(base: type) -> dict[str, Any]:
        def forward(self: Any, x: Tensor) -> Tensor:
            out = attn_plugins.attention(*self.heads(x), normalizer=self.attn_plugins_normalizer)
            return 2 * out.transpose(1, 2).flatten(2)

        return {"forward": forward}

    register_adapter(Adapter("mine", lambda cls: issubclass(cls, ByName), overrides))
    model, x = ByName(), torch.randn(2, 7, DIM)
    expected = 2 * model(x)
    attn_plugins.patch(model, "softmax")
    assert [line.adapter for line in attn_plugins.describe(model)] == ["mine"]
    assert_same_outputs(model, expected, lambda m: m(x))
    with pytest.raises(ValueError, match="'mine' is registered already"):
        register_adapter(Adapter("mine", lambda cls: False, overrides))


def test_another_adapter_of_the_same_name_is_the_one_that_runs() -> None:
    def times(factor: int) -> Adapter:
        def overrides(base: type) -> dict[str, Any]:
            def forward(self: Any, x: Tensor) -> Tensor:
                out = attn_plugins.attention(*self.heads(x), normalizer=self.attn_plugins_normalizer)
                return factor * out.transpose(1, 2).flatten(2)

            return {"forward": forward}

        return Adapter("mine", lambda cls: issubclass(cls, ByName), overrides)

    x, models = torch.randn(2, 7, DIM), []
    for factor in (2, 3):
        model = ByName()
        expected = factor * model(x)
        with ADAPTERS.temporarily():
            register_adapter(times(factor))
            attn_plugins.patch(model, "softmax")
            assert_same_outputs(model, expected, lambda m: m(x))
        models.append((model, expected))  # so that both classes stay
    for model, expected in models:
        torch.testing.assert_close(model(x), expected)
        with pytest.raises(attn_plugins.UnknownPluginError, match="mine"):
            copy.deepcopy(model)


def test_an_adapter_can_refuse_a_module(no_new_adapters: None) -> None:
    def check(module: nn.Module) -> None:
        raise attn_plugins.UnsupportedModelError("its window is not square")

    register_adapter(Adapter("strict", lambda cls: issubclass(cls, ByName), lambda base: {}, check=check))
    model = nn.Sequential(ByKeywords(), ByName())
    with pytest.raises(attn_plugins.UnsupportedModelError, match="not square"):
        attn_plugins.patch(model, "entmax15")
    assert type(model[0]) is ByKeywords and not hasattr(model[0], "attn_plugins_normalizer")
