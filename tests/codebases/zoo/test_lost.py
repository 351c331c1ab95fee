"""A patch that no longer holds says so: at the forward that is not answered, or where ``describe`` is asked."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_plugins

from .entries_dino import Mae, plain
from .entries_spelling import InAttribute, Spelled, spelled
from .entry import DIM, Host, Normalize, attend, built, entmax15, made, one, softmax
from .test_zoo import same


class Renamed(Mae):
    """What another library gives the module for a class, as ToMe does."""


def patched_mae() -> tuple[Host, Tensor, Tensor]:
    """Model, input and the entmax output that it has given."""
    model, (x,) = built(Mae), made(one)
    expected = plain(model.attn, entmax15, x)[0]
    attn_plugins.patch(model, "entmax15")
    same(model(x), expected)
    return model, x, expected


def spec_of(model: Host) -> str | None:
    return next((line.spec for line in attn_plugins.describe(model) if line.path == "attn"), None)


def test_a_class_set_by_another_library_is_a_lost_patch() -> None:
    model, _, _ = patched_mae()
    model.attn.__class__ = Renamed
    assert "patch lost" in str(attn_plugins.describe(model))
    assert spec_of(model) != "entmax15"


def test_a_subclass_of_the_patched_class_is_still_patched() -> None:
    model, x, expected = patched_mae()
    model.attn.__class__ = type("Sharded", (type(model.attn),), {})  # as fully_shard does
    same(model(x), expected)
    assert "patch lost" not in str(attn_plugins.describe(model))
    assert spec_of(model) == "entmax15"


def test_a_new_layer_in_the_place_of_a_patched_one_is_not_patched() -> None:
    model, _, _ = patched_mae()
    model.attn = Mae().double()
    assert spec_of(model) != "entmax15"


def test_forward_set_on_the_instance() -> None:
    """accelerate's and ToMe's way: upstream's forward hides that of the patched class."""
    model, x, _ = patched_mae()
    model.attn.forward = types.MethodType(Mae.forward, model.attn)
    raises_or_is_told(model, x)


def test_forward_on_the_instance_that_calls_the_patched_one_goes_on() -> None:
    """accelerate's hooks call the forward that they found."""
    model, x, expected = patched_mae()
    inner = model.attn.forward
    model.attn.forward = lambda *args: inner(*args)
    same(model(x), expected)


def raises_or_is_told(model: Host, x: Tensor) -> None:
    try:
        model(x)
    except (RuntimeError, ValueError) as error:
        assert "attn" in str(error)
    else:
        assert "patch lost" in str(attn_plugins.describe(model))


class Skips(Spelled):
    """A branch computes no attention."""

    skip = False

    def forward(self, x: Tensor, skip: bool = False) -> Any:
        if skip or self.skip:
            return self.out(x)
        q, k, v = self.qkv(x)
        return self.join(F.softmax(q @ k.mT, -1) @ v)


class SkipsFused(Skips):
    def forward(self, x: Tensor, skip: bool = False) -> Any:
        if skip or self.skip:
            return self.out(x)
        return self.join(F.scaled_dot_product_attention(*self.qkv(x), scale=1.0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("by_argument", [False, True])
@pytest.mark.parametrize("cls", [Skips, SkipsFused])
def test_a_forward_without_attention_raises_also_after_good_ones(
    cls: type[nn.Module], by_argument: bool, training: bool
) -> None:
    model, (x,) = built(cls).train(training), made(one)
    attn_plugins.patch(model, "entmax15")
    expected = spelled(model.attn, entmax15, x)
    same(model(x), expected)
    model.attn.skip = not by_argument
    with pytest.raises((RuntimeError, ValueError), match=r"attn[\s\S]*" + cls.__name__ + "|" + cls.__name__):
        model(x, by_argument)
    model.attn.skip = False
    same(model(x), expected)


def exp_softmax(scores: Tensor, dim: int) -> Tensor:
    powers = scores.exp()
    return powers / powers.sum(dim, keepdim=True)


def test_a_softmax_that_was_exchanged_after_the_patch_raises() -> None:
    model, (x,) = built(InAttribute), made(one)
    attn_plugins.patch(model, "entmax15")
    same(model(x), spelled(model.attn, entmax15, x))
    model.attn.act = exp_softmax
    with pytest.raises((RuntimeError, ValueError), match=r"attn|InAttribute"):
        model(x)


class Joint(nn.Module):
    """One block's attention, whose forward its parent may never call."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 1
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Any:
        return self.proj(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))


class Eomt(nn.Module):
    """The model computes the attention of all its blocks, to add a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Joint() for _ in range(3))

    def _attn(self, module: Any, x: Tensor, mask: Tensor | None = None) -> Any:
        q, k, v = module.qkv(x).chunk(3, -1)
        return module.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self._attn(block, x)
        return x


class LastByHand(Eomt):
    """The model computes its last block's attention, for the map that it returns with it."""

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks[:-1]:
            x = x + block(x)
        last: Any = self.blocks[-1]
        q, k, v = last.qkv(x).chunk(3, -1)
        attn = (q @ k.transpose(-2, -1) * DIM**-0.5).softmax(dim=-1)
        return x + last.proj(attn @ v)


class LastByHandFused(Eomt):
    def forward(self, x: Tensor) -> Any:
        for block in self.blocks[:-1]:
            x = x + block(x)
        return x + self._attn(self.blocks[-1], x)


def blocks_reference(m: Any, normalizers: list[Normalize], x: Tensor) -> Tensor:
    for block, normalize in zip(m.blocks, normalizers, strict=True):
        x = x + block.proj(attend(normalize, *block.qkv(x).chunk(3, -1)))
    return x


every_parent = pytest.mark.parametrize("cls", [Eomt, LastByHand, LastByHandFused])


@every_parent
def test_the_reference_is_the_parent(cls: type[nn.Module]) -> None:
    model, (x,) = built(cls), made(one)
    same(blocks_reference(model.attn, [softmax] * 3, x), model(x))


@every_parent
@pytest.mark.parametrize("layers", [None, "attn.blocks", "attn.blocks.2"])
def test_a_parent_that_computes_its_childrens_attention(cls: type[nn.Module], layers: str | None) -> None:
    """Honoured in every layer that was named, or refused, or stopped, or named as unreached: never ignored."""
    model, (x,) = built(cls), made(one)
    chosen = [layers is None or f"attn.blocks.{i}".startswith(layers) for i in range(3)]
    expected = blocks_reference(model.attn, [entmax15 if yes else softmax for yes in chosen], x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answered = stopped(lambda: attn_plugins.patch(model, "entmax15", layers=layers))
        if answered is None:
            return
    out = stopped(lambda: model(x))
    if out is None or torch.allclose(out, expected, atol=1e-5):
        return
    # What is left as it was is told, and what describe calls patched runs patched.
    told = " ".join(str(item.message) for item in caught)
    lines = {line.path: line.spec for line in attn_plugins.describe(model)}
    claimed = [lines.get(f"attn.blocks.{i}") == "entmax15" for i in range(3)]
    assert "attn" in told
    same(out, blocks_reference(model.attn, [entmax15 if yes else softmax for yes in claimed], x))


def stopped(call: Callable[[], Any]) -> Any:
    """What the call returns; None if it raised what a refusal or a forward that is not answered raises."""
    try:
        return call()
    except (ValueError, RuntimeError) as error:
        assert "attn" in str(error)
        return None
