"""A whole training step of a Vision Transformer: forward, backward and AdamW, softmax beside entmax."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..patching import patch
from .report import as_dict
from .timing import in_turns

__all__ = ["BASELINE", "bench_step", "training_step"]

BASELINE = "softmax"


def bench_step(
    arch: str = "vit_small_patch16_224",
    specs: Iterable[str] = ("entmax15",),
    batch: int = 16,
    repeats: int = 8,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time one optimiser step of a timm model as it is and patched with each spec.

    Args:
        arch: timm model name.
        specs: spec strings.
        batch: images per step.
        repeats: samples of each model.
        device: "cpu".

    Returns:
        The dictionary that ``report.table`` prints.
    """
    import timm
    import timm.data

    torch.manual_seed(0)
    model = timm.create_model(arch)
    state, size = model.state_dict(), timm.data.resolve_model_data_config(model)["input_size"]
    images, labels = torch.randn(batch, *size, device=device), torch.randint(1000, (batch,), device=device)
    steps = {BASELINE: training_step(model.to(device), images, labels)}
    for spec in specs:
        twin = timm.create_model(arch)
        twin.load_state_dict(state)
        steps[spec] = training_step(patch(twin.to(device), spec), images, labels)
    timings = in_turns(steps, repeats)
    settings = {"model": arch, "batch": batch, "dtype": "float32"}
    return as_dict("training step: forward, backward, AdamW", BASELINE, timings, device, settings)


def training_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One step of supervised training on ``images`` ``[B, C, H, W]`` and ``labels`` ``[B]``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step
