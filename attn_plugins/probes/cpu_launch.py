"""Several processes without a GPU. Importing this module is what does it: the configs name it in ``custom_imports``."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

__all__ = ["join_cpu_processes"]


def join_cpu_processes() -> None:
    """Join the process group on gloo, where a launcher started several processes on a machine without a GPU.

    mmengine's own start calls ``torch.cuda.set_device``, whatever the backend; it leaves a group that exists alone.
    Does nothing with a GPU, without a launcher, or if there is a group already.
    """
    launched = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if launched and not torch.cuda.is_available() and not dist.is_initialized():
        dist.init_process_group("gloo")


join_cpu_processes()
