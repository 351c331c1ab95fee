"""DDP and FSDP: two gloo processes take the same step, with the same loss and gradients, as one process alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers.tiny_vit import Attention, Block
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

import attn_plugins

from .models import images, tiny_vit

BATCH, WORLD = 4, 2


def model(spec: str) -> nn.Module:
    return attn_plugins.patch(tiny_vit(depth=2), spec).train()


def ddp(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module)


def fsdp(module: nn.Module) -> nn.Module:
    policy = ModuleWrapPolicy({Block})
    return FullyShardedDataParallel(
        module, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
    )


def sharded(module: Any) -> Any:
    for block in module.blocks:
        fully_shard(block)
    return fully_shard(module)


def sharded_attention(module: Any) -> Any:
    """Sharding the attention itself makes a subclass of its patched class."""
    for block in module.blocks:
        fully_shard(block.attn)
    return fully_shard(module)


def step(module: nn.Module, x: Tensor) -> float:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    loss = module(x).square().mean()
    loss.backward()
    optimizer.step()
    out: float = loss.item()
    return out


WRAPS = [ddp, fsdp, sharded, sharded_attention]
SPECS = ["entmax15", "entmax_alpha:init=1.4"]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    try:
        x, losses = images(BATCH)[rank::WORLD], {}
        for spec in SPECS:
            for wrap in WRAPS:
                wrapped = wrap(model(spec))
                both = torch.tensor([step(wrapped, x), wrapped(x).square().mean().item()])
                dist.all_reduce(both)
                losses[f"{wrap.__name__} {spec}"] = both / WORLD
        if rank == 0:
            torch.save(losses, f"{folder}/losses.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def losses_of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Before and after one step, by wrapper and spec."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(worker, (str(folder),), nprocs=WORLD)
    out: dict[str, Tensor] = torch.load(folder / "losses.pt", weights_only=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_two_processes_do_what_one_does(
    wrap: Callable[[nn.Module], nn.Module], spec: str, losses_of_two_processes: dict[str, Tensor]
) -> None:
    alone, x = model(spec), images(BATCH)
    expected = torch.tensor([step(alone, x), alone(x).square().mean().item()])
    # The second loss is after a step: it is the same only if all gradients were.
    torch.testing.assert_close(losses_of_two_processes[f"{wrap.__name__} {spec}"], expected, atol=1e-6, rtol=1e-5)
    assert expected[0] != expected[1]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_patching_a_wrapped_model(one_process: None) -> None:
    wrapped, x = ddp(tiny_vit()), images()
    attn_plugins.patch(wrapped, "entmax15")
    assert torch.equal(wrapped(x), attn_plugins.patch(tiny_vit(), "entmax15")(x))
    state: Any = wrapped.get_submodule("module").state_dict()
    assert "entmax15" in str(state._metadata)
    with pytest.raises(ValueError, match="patch first, then wrap"):
        attn_plugins.patch(wrapped, "entmax_alpha")
    assert [line.spec for line in attn_plugins.describe(wrapped)] == ["entmax15"] * 4


def test_unpatching_under_another_library_s_subclass_is_refused(one_process: None) -> None:
    model = attn_plugins.patch(tiny_vit(), "entmax15")
    fully_shard(model.get_submodule("blocks.1.attn"))
    classes = [type(module) for module in model.modules()]
    for change in (attn_plugins.unpatch, partial(attn_plugins.patch, spec="softmax")):
        with pytest.raises(ValueError, match=r"blocks\.1\.attn was patched and then given the class"):
            change(model)
    assert [type(module) for module in model.modules()] == classes


def test_sharding_first_and_patching_then(one_process: None) -> None:
    model, x = tiny_vit(), images()
    expected = attn_plugins.patch(copy.deepcopy(model), "entmax15")(x)
    attention = model.get_submodule("blocks.1.attn")
    fully_shard(attention)
    sharded = type(attention)
    attn_plugins.patch(model, "entmax15")
    torch.testing.assert_close(model(x), expected)
    attn_plugins.unpatch(model)
    assert type(attention) is sharded and type(model.blocks[0].attn) is Attention
