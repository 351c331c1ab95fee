"""Processes that may be killed: `torchrun --nproc_per_node 2 --max-restarts 3 with_torchrun.py OUT STEPS`.

TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives ranks that are started again a store without the addresses of the dead.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import yours
from torch.nn.parallel import DistributedDataParallel

import attn_plugins
from attn_plugins.checkpoints import save


def train(out: Path, steps: int, every: int = 5) -> None:
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")  # "nccl" on GPUs
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = yours.model()
    # First the patch, then DDP, which collects parameters too.
    anneal = attn_plugins.Anneal(model, "entmax15", steps=10)
    monitor = attn_plugins.Monitor(model, out / "attention.jsonl", every=5)  # rank 0 writes
    network = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    last = out / "last.pth"
    if last.exists():
        saved = torch.load(last)
        model.load_state_dict(saved["model"])  # alpha goes on where it was
        optimizer.load_state_dict(saved["optimizer"])
        monitor.load_state_dict(saved["monitor"])
    for step in range(anneal.steps, steps):
        images, labels = yours.batch(step)
        loss = F.cross_entropy(network.train()(images[rank::world]), labels[rank::world])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        anneal.step()
        monitor.step()
        if rank == 0 and (anneal.steps % every == 0 or anneal.steps == steps):
            # Whole or not at all: whoever is killed in here leaves the one before.
            save(last, model, optimizer=optimizer.state_dict(), monitor=monitor.state_dict())
            print(f"step {anneal.steps} loss {loss.item():.6f}", flush=True)
    monitor.close()
    if world > 1:
        dist.destroy_process_group()
    if rank == 0:
        print(attn_plugins.verify(model, yours.batch(0)[0]))


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
