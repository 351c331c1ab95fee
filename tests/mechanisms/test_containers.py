"""Blocks whose parts are bare containers, which run what they hold: what a patch adds to them is no part."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attn_plugins

from .tiny_vits import images, timm, trained


class Listed(nn.ModuleList):
    """An MLP as some forks write it."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


def with_bare_parts(container: Callable[[list[nn.Module]], nn.Module]) -> Any:
    model = timm()
    for block in model.blocks:
        block.mlp = container([block.mlp.fc1, block.mlp.act, block.mlp.fc2])
        block.attn.proj = nn.Sequential(block.attn.proj, nn.Identity())
        block.norm2 = nn.Sequential(block.norm2)
    return trained(model)


@pytest.fixture(params=[lambda parts: nn.Sequential(*parts), Listed], ids=["Sequential", "ModuleList"])
def model(request: pytest.FixtureRequest) -> Any:
    return with_bare_parts(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["softmax+cb_s", "softmax+gated", "entmax_alpha+cb_s+registers:num=2"])
def test_what_is_added_is_no_part_of_the_chain(model: Any, spec: str) -> None:
    whole, x, names = timm(), images(), {"mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2", "proj.0": "proj", "norm2.0": "norm2"}
    state = model.state_dict()
    for bare, name in names.items():
        state = {key.replace(f"{bare}.", f"{name}."): value for key, value in state.items()}
    whole.load_state_dict(state)
    for one in (model, whole.eval()):
        attn_plugins.patch(one, spec)
        for name, parameter in one.named_parameters():
            if "attn_plugins" in name:
                torch.manual_seed(parameter.numel())
                nn.init.normal_(parameter, std=0.1)
    expected = whole(x)
    torch.testing.assert_close(model(x), expected)
    assert len(model.blocks[0].mlp) == 3 and model.blocks[0].mlp[-1] is list(model.blocks[0].mlp)[2]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied(x), expected)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    attn_plugins.unpatch(model)
    attn_plugins.unpatch(whole)
    torch.testing.assert_close(model(x), whole(x))
    assert type(model.blocks[0].mlp) in (nn.Sequential, Listed)
