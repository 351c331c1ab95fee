"""Short runs of the real configs: through mim, or in this process where mim itself is not the point."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader

from attn_plugins.probes.run.command import data_options, mim_command, size_options

# Which written layout each config reads.
LAYOUT_OF = {
    "imagenet_linear": "imagenet",
    "voc2012_linear": "voc2012",
    "ade20k_linear": "ade20k",
    "cityscapes_linear": "cityscapes",
    "nyuv2_linear4_depth": "nyuv2",
    "kitti_linear4_depth": "kitti",
    "sunrgbd_linear4_depth": "sunrgbd",
    "sunrgbd_linear4_depth_train": "sunrgbd",
}


def options(
    probe: str, backbone: Path, roots: dict[str, Path], iterations: int = 2, total: int = 4, **more: Any
) -> dict[str, Any]:
    """The config as it is, but for data, sizes, batch and iteration counts."""
    transfer = str(roots["nyuv2"]) if probe == "sunrgbd_linear4_depth" else None
    return {
        **data_options(str(roots[LAYOUT_OF[probe]]), transfer, workers=0),
        **size_options(probe, (64, 64) if probe.startswith("imagenet") else (48, 64)),
        "model.backbone.checkpoint": backbone,
        "train_cfg.total_batch_size": total,
        "train_cfg.max_iters": iterations,
        "train_cfg.val_interval": iterations,
        "default_hooks.checkpoint.interval": iterations,
        "default_hooks.logger.interval": 1,
        **more,
    }


def mim(action: str, probe: str, settings: dict[str, Any], *arguments: str, work_dir: Path, **environment: str) -> str:
    """Run mim to its end; its output. A failure shows the output's end."""
    command = mim_command(action, probe, settings, *arguments, work_dir=work_dir)
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    return output


def weights(work_dir: Path, iteration: int) -> dict[str, torch.Tensor]:
    """The tensors of the head in a checkpoint; beside them it holds what is told of the run, as bytes."""
    state = CheckpointLoader.load_checkpoint(str(work_dir / f"iter_{iteration}.pth"))["state_dict"]
    return {name: tensor for name, tensor in state.items() if name != "_extra_state"}
