"""Anneal and Monitor under DDP and FSDP: two gloo processes take the steps of one, and rank 0 tells what it sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers.tiny_vit import TinyViT
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, fully_shard
from torch.nn.parallel import DistributedDataParallel

from attn_plugins import Anneal, Monitor

pytestmark = pytest.mark.slow

WORLD, STEPS = 2, 4
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def ddp(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module)


def fsdp(module: nn.Module) -> nn.Module:
    half = MixedPrecision(buffer_dtype=torch.bfloat16)
    return FullyShardedDataParallel(module, use_orig_params=True, device_id=torch.device("cpu"), mixed_precision=half)


def sharded(module: nn.Module) -> nn.Module:
    fully_shard(module)
    return module


WRAPS = (ddp, fsdp, sharded)


def losses(wrap: Callable[[nn.Module], nn.Module], images: torch.Tensor, file: Path | None = None) -> list[float]:
    """Of a run that is annealed; half way its state is loaded into new objects."""
    found: list[float] = []
    state: dict[str, Any] = {}
    for half in range(2):
        torch.manual_seed(1)
        model = TinyViT()
        anneal = Anneal(model, "entmax15", steps=STEPS)
        wrapped = wrap(model)
        if half:
            set_model_state_dict(wrapped, state)
            assert anneal.steps == STEPS // 2
        monitor = Monitor(wrapped, file or (), every=1)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5)
        for _ in range(STEPS // 2):
            loss = (wrapped(images) - 1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            anneal.step()
            monitor.step()
            found.append(loss.item())
        monitor.close()
        state = get_model_state_dict(wrapped)
    return found


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    try:
        told = {}
        for wrap in WRAPS:
            mean = torch.tensor(losses(wrap, IMAGES[rank::WORLD], Path(folder, f"{wrap.__name__}.{rank}.jsonl")))
            dist.all_reduce(mean)
            told[wrap.__name__] = mean / WORLD
        if rank == 0:
            torch.save(told, f"{folder}/losses.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_anneal_as_one_and_go_on(tmp_path: Path) -> None:
    mp.spawn(worker, (str(tmp_path),), nprocs=WORLD)
    expected = torch.tensor(losses(lambda module: module, IMAGES))
    for name, found in torch.load(tmp_path / "losses.pt").items():
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=partial("{}: {}".format, name))
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {f"{wrap.__name__}.0.jsonl" for wrap in WRAPS}
