"""Two gloo processes: mixed precision, compiling, checkpointing and shared heads give what one process gives alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import attn_plugins

from .models import images, tiny_vit

pytestmark = pytest.mark.nightly

WORLD, BATCH = 2, 4
SPEC = "entmax_alpha:init=1.4+specialization"


def vit() -> Any:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(16, 8, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    for block in model.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return attn_plugins.patch(model, SPEC).train()


def pictures() -> Tensor:
    return torch.randn(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def sharded(model: Any, **options: Any) -> nn.Module:
    for block in model.blocks:
        fully_shard(block, **options)
    out: nn.Module = fully_shard(model, **options)
    return out


def mixed(model: Any) -> nn.Module:
    return sharded(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))


def compiled(model: Any) -> Any:
    return torch.compile(DistributedDataParallel(model), backend="aot_eager")


def checkpointed(wrap: Callable[[Any], Any], model: Any) -> Any:
    blocks = set(model.blocks)
    apply_activation_checkpointing(model, checkpoint_wrapper, check_fn=lambda module: module in blocks)
    for number, block in enumerate(model.blocks):
        model.blocks[number] = block
    return wrap(model)


WRAPS: dict[str, Callable[[Any], Any]] = {
    "FSDP2 in bf16": mixed,
    "DDP compiled": compiled,
    "DDP checkpointed": partial(checkpointed, DistributedDataParallel),
    "FSDP2 checkpointed": partial(checkpointed, sharded),
}


def moved(wrap: Callable[[Any], Any], x: Tensor) -> dict[str, Tensor]:
    """How far one step moves each parameter, the plugins' among them; whole, by its plain name."""
    model = vit()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    wrapped = wrap(model)
    wrapped(x).float().square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    after = {name.replace("_checkpoint_wrapped_module.", ""): p.detach() for name, p in model.named_parameters()}
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in after.items()}
    return {name: whole[name] - start for name, start in before.items()}


def heads(spec: str) -> Tensor:
    """TinyViT's output with the heads of each attention layer split over the processes."""
    model = attn_plugins.patch(tiny_vit(), spec)
    mesh = init_device_mesh("cpu", (WORLD,))
    rows = torch.arange(96).view(3, WORLD, -1)  # q, k and v of a process's heads
    for block in model.blocks:
        attention: Any = block.attn
        with torch.no_grad():
            order = rows.transpose(0, 1).reshape(-1)
            attention.qkv.weight.copy_(attention.qkv.weight[order])
            attention.qkv.bias.copy_(attention.qkv.bias[order])
        attention.num_heads //= WORLD
        parallelize_module(attention, mesh, {"qkv": ColwiseParallel(), "proj": RowwiseParallel()})
    out: Tensor = model(images()).detach()
    return out


def in_context_parallel(rank: int, model: Callable[[Tensor], Tensor]) -> str:
    """What is said where a process has its part of the tokens ``[B, N, 32]`` as a plain tensor."""
    tokens = torch.randn(1, 4 * WORLD, 32, generator=torch.Generator().manual_seed(0))
    with context_parallel(init_device_mesh("cpu", (WORLD,)), buffers=[tokens], buffer_seq_dims=[1]), torch.no_grad():
        assert tokens.shape[1] == 4
        said = refusal(lambda: model(tokens))
    # Outside of it the same model computes.
    assert model(tokens).shape == (1, 4 * WORLD, 32)
    return said


def refusal(run: Callable[[], object]) -> str:
    try:
        run()
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    try:
        told: dict[str, Any] = {name: moved(wrap, pictures()[rank::WORLD]) for name, wrap in WRAPS.items()}
        told["heads"] = heads("entmax15")
        told["learnable"] = refusal(lambda: heads("entmax_alpha"))
        mesh = init_device_mesh("cpu", (WORLD,))
        q = distribute_tensor(torch.randn(1, 2, 8, 4), mesh, [Shard(2)])
        told["context"] = refusal(lambda: attn_plugins.attention(q, q, q, normalizer="entmax15"))
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        whole = attn_plugins.patch(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(), "entmax15")
        told["inside"] = in_context_parallel(rank, whole)
        told["inside, compiled"] = in_context_parallel(rank, torch.compile(whole, backend="eager"))
        told["inside, by SDPA"] = in_context_parallel(
            rank, nn.Sequential(*attn_plugins.patch(tiny_vit(), "entmax15").blocks)
        )
        if rank == 0:
            torch.save(told, f"{folder}/told.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(worker, (str(folder),), nprocs=WORLD)
    out: dict[str, Any] = torch.load(folder / "told.pt", weights_only=True)
    return out


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return moved(lambda model: model, pictures())


@pytest.mark.parametrize("name", WRAPS)
def test_a_step_of_two_processes_is_that_of_one(name: str, told: dict[str, Any], alone: dict[str, Tensor]) -> None:
    assert told[name].keys() == alone.keys()
    learned = [key for key in alone if "attn_plugins" in key]
    assert len(learned) > 2 and all(alone[key].abs().max() > 0 for key in learned)
    for key, expected in alone.items():
        # bf16 keeps eight bits; a gradient that is lost, or not averaged, is off by half or all of it.
        allowed = 0.1 * expected.abs().max().item() + 1e-4 if "bf16" in name else 1e-5
        torch.testing.assert_close(
            told[name][key], expected, atol=allowed, rtol=1e-3, msg=partial("{}: {}".format, key)
        )


def test_heads_are_shared_out_where_nothing_is_learned_per_head(told: dict[str, Any]) -> None:
    expected = attn_plugins.patch(tiny_vit(), "entmax15")(images())
    torch.testing.assert_close(told["heads"], expected, atol=1e-5, rtol=1e-4)
    assert "alpha" in told["learnable"] and "heads" in told["learnable"]


@pytest.mark.parametrize("how", ["context", "inside", "inside, compiled", "inside, by SDPA"])
def test_context_parallelism_is_refused_by_name(how: str, told: dict[str, Any]) -> None:
    assert "context- and sequence-parallel attention is not supported" in told[how]
