"""A probe's training step on a frozen backbone, beside the plain mmseg step with a trainable one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .report import as_dict, table
from .timing import cuda_clock, in_turns, peak_mib, wall_clock

__all__ = ["bench_probes", "probes_table"]

BASELINE = "trainable backbone"
PROBE = "frozen probe"
PARTS = ("backbone", "head")


def bench_probes(
    arch: str = "timm/vit_small_patch16_224",
    probe: str = "voc2012",
    size: int = 512,
    batch: int = 2,
    spec: str = "softmax",
    repeats: int = 4,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time one training step, its parts, and its peak memory.

    Args:
        arch: architecture, random weights.
        probe: config whose head and losses are used: ``voc2012``, ``ade20k``, ``cityscapes``, ``nyuv2`` or ``kitti``.
        size: pixels of a side.
        batch: images per step.
        spec: plugins of the backbone.
        repeats: samples of each.
        device: ``cpu`` or ``cuda``.

    Returns:
        The dictionary that ``report.table`` prints; ``peers`` also have ``images_per_s``, and the two whole
        steps ``peak_mib``: of a process that does nothing else on a CPU (imports included), of the allocator on a GPU.
    """
    settings: dict[str, Any] = {"arch": arch, "probe": probe, "size": size, "batch": batch, "spec": spec}
    steps = _steps(device=device, **settings)
    timings = in_turns(steps, repeats, clock=cuda_clock if device.startswith("cuda") else wall_clock)
    result = as_dict("probe: forward, backward and AdamW of one training step", BASELINE, timings, device, settings)
    for name, peer in result["peers"].items():
        peer["images_per_s"] = 1000 * batch / peer["median_ms"]
        if name in (BASELINE, PROBE):
            peer["peak_mib"] = _peak_mib(steps[name], name, device, settings)
    return result


def probes_table(result: dict[str, Any]) -> str:
    """The usual table, then images per second and peak memory."""
    lines = [table(result)]
    for name, peer in result["peers"].items():
        memory = f", peak {peer['peak_mib']:.0f} MiB" if "peak_mib" in peer else ""
        lines.append(f"{name}: {peer['images_per_s']:.2f} images/s{memory}")
    return "\n".join(lines)


def _steps(
    arch: str, probe: str, size: int, batch: int, spec: str, device: str = "cpu"
) -> dict[str, Callable[[], object]]:
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    from ..probes.run.paths import config_file

    init_default_scope("mmseg")
    config = Config.fromfile(config_file(probe))
    config.model.backbone.update(arch=arch, random_init=True, plugins=spec)
    model = MODELS.build(config.model).to(device).train()
    twin = MODELS.build(config.model).to(device).train()
    images = torch.randn(batch, 3, size, size, device=device)
    depth = "gt_depth_map" if config.model.type == "DepthProbe" else None
    samples = []
    for _ in range(batch):
        sample = SegDataSample(metainfo={"img_shape": (size, size), "ori_shape": (size, size)})
        if depth:
            sample.set_data({depth: PixelData(data=torch.rand(1, size, size, device=device) * 9 + 0.5)})
        else:
            labels = torch.randint(0, config.model.decode_head.num_classes, (1, size, size), device=device)
            sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    trainable = _Trainable(twin.backbone)
    twin.backbone = trainable
    with torch.no_grad():
        features = model.backbone(images)
    return {
        BASELINE: _step(twin, lambda: twin.loss(images, samples)),
        PROBE: _step(model, lambda: model.loss(images, samples)),
        PARTS[0]: lambda: model.backbone(images),
        PARTS[1]: _step(model, lambda: model.decode_head.loss(features, samples, None)),
    }


class _Trainable(nn.Module):
    """The same features with their graph, as a plain mmseg backbone gives them."""

    def __init__(self, frozen: Any) -> None:
        super().__init__()
        self.channels = frozen.channels
        self.vit = frozen.model.requires_grad_(True).train()
        self.frozen = [frozen]

    def forward(self, images: torch.Tensor) -> Any:
        return type(self.frozen[0]).forward.__wrapped__(self.frozen[0], images)


def _step(model: nn.Module, losses: Callable[[], dict[str, torch.Tensor]]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack([value for name, value in losses().items() if "loss" in name]).sum().backward()
        optimizer.step()

    return step


def _peak_mib(step: Callable[[], object], name: str, device: str, settings: dict[str, Any]) -> float:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    # A process's peak never falls again, so each step gets a process.
    code = f"from {__name__} import _own_peak; print(_own_peak({name!r}, {settings!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _own_peak(name: str, settings: dict[str, Any]) -> float:
    step = _steps(**settings)[name]
    for _ in range(2):
        step()
    return peak_mib()
