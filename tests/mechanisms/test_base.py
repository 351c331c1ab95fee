"""A mechanism from outside: registered by name, applied, copied and taken off like the built-in ones."""

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import attn_plugins
from attn_plugins.mechanisms import Mechanism, Owned, add_layer
from attn_plugins.registry import MECHANISMS

from .tiny_vits import images, timm, trained


class Shift(Owned):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.empty(channels))

    def reset_parameters(self) -> None:
        torch.nn.init.ones_(self.bias)


class Shifted(Mechanism):
    """Adds a learnable vector to the final norm's output."""

    def __init__(self, times: int = 1) -> None:
        self.times = times

    def apply(self, vit: Any) -> None:
        if not hasattr(vit.norm, "attn_plugins_shifted"):
            vit.norm.attn_plugins_shifted = Shift(vit.cls_token.shape[-1]).like(vit.cls_token)
        vit.norm.attn_plugins_shifted__times = self.times
        add_layer(vit.norm, shifting)


def shifting(base: type[Any]) -> dict[str, Any]:
    def forward(self: Any, x: Tensor) -> Any:
        return base.forward(self, x) + self.attn_plugins_shifted__times * self.attn_plugins_shifted.bias

    return {"forward": forward}


@pytest.fixture
def registered() -> Iterator[None]:
    with MECHANISMS.temporarily():
        attn_plugins.register_mechanism("shifted")(Shifted)
        yield


def test_it_behaves_as_the_built_in_ones(registered: None) -> None:
    model = trained(timm())
    before = model(images())
    attn_plugins.patch(model, "softmax+shifted:times=3")
    torch.testing.assert_close(model(images()), before + 3)
    attn_plugins.patch(model, "cb_s+shifted:times=3")
    model.norm.attn_plugins_shifted.bias.data.fill_(2)
    attn_plugins.patch(model, "entmax15+shifted:times=3")
    attn_plugins.patch(model, "shifted:times=3")
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(images()), before + 6)
    attn_plugins.patch(model, "shifted:times=1")
    torch.testing.assert_close(model(images()), before + 1)
    with pytest.raises(ValueError, match="'shifted' has no parameter 'twice'; it has times"):
        attn_plugins.patch(model, "shifted:twice=1")
    attn_plugins.unpatch(model)
    torch.testing.assert_close(model(images()), before)
    assert not [name for name in model.state_dict() if "shifted" in name]
