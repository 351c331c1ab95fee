"""Run on two processes: save a state dict that two processes hold halves of, in the folder that is the argument."""

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
whole = torch.load(f"{sys.argv[1]}/whole.pth", weights_only=True)
halves = {
    name: distribute_tensor(tensor, mesh, [Shard(0) if len(tensor) > 1 else Replicate()])
    for name, tensor in whole.items()
}
dcp.save({"model": halves}, checkpoint_id=f"{sys.argv[1]}/sharded")
dist.destroy_process_group()
