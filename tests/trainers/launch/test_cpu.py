"""`--device cpu`: what a CUDA-only script says is answered by the CPU, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import official_trainers as trainers

SCRIPT = """
import os
import torch, torch.distributed as dist
from torch import nn

assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
torch.cuda.set_device(0)
dist.init_process_group(backend="nccl", init_method="env://")
assert dist.get_backend() == "gloo"
tensors = [
    torch.zeros(2, device="cuda"), torch.tensor([1.0], device=torch.device("cuda", 0)), torch.ones(2).cuda(),
    torch.ones(2).to("cuda", non_blocking=True), torch.ones(2).to(torch.device("cuda:1")), torch.ones(2).pin_memory(),
    torch.zeros_like(torch.ones(2), device="cuda"), torch.ones(2).new_zeros(2, device="cuda"),
]
network = nn.Linear(2, 2).cuda().to("cuda").to(torch.device("cuda"))
tensors += network.parameters()
assert all(tensor.device.type == "cpu" for tensor in tensors)
wrapped = nn.parallel.DistributedDataParallel(network, device_ids=[0])
scaler = torch.amp.GradScaler("cuda")
with torch.autocast("cuda"):
    loss = wrapped(torch.ones(1, 2, device="cuda")).sum()
assert loss.dtype == torch.float32
scaler.scale(loss).backward()
torch.cuda.synchronize()
gathered = torch.empty(1)
dist.all_gather_into_tensor(gathered, loss.detach())
assert gathered.item() == loss.item()
assert torch.hub.list("facebookresearch/xcit:main") == []
try:
    torch.hub.load("facebookresearch/xcit:main", "xcit_small")
except RuntimeError as error:
    print(error)
print("ALL ON THE CPU")
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_cuda_calls_are_answered_by_the_cpu_and_it_says_so_loudly(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "attn_plugins.launch", "--device", "cpu", "--", str(script)]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(launcher, capture_output=True, text=True, env=environment, check=False)
    assert "ALL ON THE CPU" in done.stdout, done.stderr
    assert "--device cpu makes no network calls" in done.stdout
    assert "NOT for training" in done.stderr


def test_the_stand_ins_for_xformers_do_what_plain_attention_does() -> None:
    from attn_plugins.trainers.launch.xformers import index_select_cat, memory_efficient_attention, scaled_index_add

    q, k, v = torch.randn(3, 2, 5, 4, 8).unbind()
    expected = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5, dim=-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", expected, v)
    torch.testing.assert_close(memory_efficient_attention(q, k, v), expected)

    x, rows = torch.randn(6, 3, 8), torch.tensor([4, 1])
    picked = index_select_cat([x.flatten(1), x.flatten(1)], [rows, rows[:1]])
    torch.testing.assert_close(picked, torch.cat([x[4].flatten(), x[1].flatten(), x[4].flatten()]))
    added, scaling = (
        scaled_index_add(x, rows, torch.ones(2, 3, 8), scaling=torch.arange(8.0), alpha=2.0),
        torch.arange(8.0),
    )
    torch.testing.assert_close(added[4], x[4] + 2 * scaling)
    torch.testing.assert_close(added[0], x[0])


def test_packed_sequences_do_not_see_each_other() -> None:
    fmha = pytest.importorskip("xformers.ops.fmha", reason="needs xformers for its BlockDiagonalMask")
    from attn_plugins.trainers.launch.xformers import memory_efficient_attention

    q, k, v = torch.randn(3, 1, 7, 2, 4).unbind()
    mask = fmha.BlockDiagonalMask.from_seqlens([3, 4])
    packed = memory_efficient_attention(q, k, v, attn_bias=mask)
    alone = memory_efficient_attention(q[:, :3], k[:, :3], v[:, :3])
    torch.testing.assert_close(packed[:, :3], alone)


MEANS = """
import sys
import torch, torch.distributed as dist
from torch.distributed import ReduceOp
from attn_plugins.trainers.launch import cpu
from attn_plugins.trainers.launch.cpu import instead_of_cuda

def without_averages(function):
    # as gloo has it in torch 2.7
    def collective(*args, op=ReduceOp.SUM, **kwargs):
        if op == ReduceOp.AVG:
            raise ValueError("Cannot use ReduceOp.AVG with Gloo")
        return function(*args, op=op, **kwargs)
    return collective

for name in ("all_reduce", "reduce_scatter_tensor"):
    setattr(dist, name, without_averages(getattr(dist, name)))
cpu._gloo_averages = lambda: False
with instead_of_cuda():
    dist.init_process_group("nccl")
    rank = dist.get_rank()
    mine = torch.tensor([1.0, 8.0]) * (rank + 1)
    told = {name: mine.clone() for name in ("given", "mean", "sum", "alone")}
    dist.all_reduce(told["mean"], op=ReduceOp.AVG)
    told["later"] = mine.clone().requires_grad_()
    dist.all_reduce(told["later"], op=ReduceOp.AVG, async_op=True).wait()
    dist.all_reduce(told["sum"])
    told["part"] = torch.empty(1)
    dist.reduce_scatter_tensor(told["part"], told["given"], op=ReduceOp.AVG)
    dist.all_reduce(told["alone"], ReduceOp.AVG, dist.new_group([0]))
    torch.save(told, f"{sys.argv[1]}/{rank}.pt")
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_means_over_processes_where_gloo_has_none(tmp_path: Path) -> None:
    (tmp_path / "means.py").write_text(MEANS)
    trainers.run(tmp_path / "means.py", tmp_path, processes=2)
    for rank, part in enumerate([1.5, 12.0]):
        told = torch.load(tmp_path / f"{rank}.pt")
        mine = [1.0 + rank, 8.0 + 8 * rank]
        assert told["mean"].tolist() == told["later"].tolist() == [1.5, 12.0]
        assert told["sum"].tolist() == [3.0, 24.0]
        assert told["part"].tolist() == [part]
        assert told["given"].tolist() == told["alone"].tolist() == mine
