"""Gradients of a patched, DDP-wrapped ViT on this process's share of eight images, gathered over the processes."""

import sys

import timm
import torch
import torch.distributed as dist

import attn_plugins

spec, path = sys.argv[1:]
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = timm.create_model("test_vit", img_size=64, num_classes=4)
attn_plugins.patch(model, spec)
with torch.no_grad():
    for parameter in model.parameters():  # away from zeros and from copies, so that every gradient is at work
        parameter.add_(0.1 * torch.randn(parameter.shape))
wrapped = torch.nn.parallel.DistributedDataParallel(model)
images = torch.randn(8, 3, 64, 64).chunk(size)[rank]
wrapped(images).square().mean().backward()
if rank == 0:
    torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, path)
dist.destroy_process_group()
