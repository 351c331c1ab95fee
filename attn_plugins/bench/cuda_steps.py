"""Whole training steps on a GPU: a model with its own softmax attention beside the same model with entmax-1.5."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..patching import patch
from .timing import in_turns

__all__ = ["bench_cuda_steps", "multi_crop_step", "official_dino", "steps_table"]

SPEC = "entmax15"


def official_dino() -> nn.Module | None:
    """DINO's own ViT-S/16 from the checkout that ``DINO_ROOT`` names; None if the variable is not set.

    Raises:
        FileNotFoundError: there is no ``vision_transformer.py`` there.
    """
    root = os.environ.get("DINO_ROOT")
    if root is None:
        return None
    if not (Path(root) / "vision_transformer.py").is_file():
        raise FileNotFoundError(f"DINO_ROOT={root} holds no vision_transformer.py; point it at a checkout of DINO")
    sys.path.insert(0, root)
    try:
        model: nn.Module = importlib.import_module("vision_transformer").vit_small(patch_size=16)
        return model
    finally:
        sys.path.remove(root)


def multi_crop_step(model: nn.Module, crops: Sequence[Tensor], clip: float = 3.0) -> Callable[[], None]:
    """One optimiser step on batches of crops ``[B, 3, H, W]``, one forward each, in bfloat16 where autocast puts it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    device = crops[0].device.type

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            outputs = [model(crop) for crop in crops]
        torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()

    return step


def bench_cuda_steps(
    device: torch.device, clock: Callable[[Callable[[], object]], float], repeats: int = 20, batch: int = 64
) -> dict[str, Any]:
    """Milliseconds of a training step with softmax and with entmax-1.5, and their ratio.

    Args:
        device: a GPU.
        clock: times one call, in milliseconds.
        repeats: samples of each.
        batch: images per step; DINO's step has two global crops of 224 and eight local ones of 96 of each.

    Returns:
        By model: ``softmax_ms``, ``entmax15_ms``, ``ratio``; or ``not measured`` and the reason.
    """
    import timm

    large = torch.randn(2 * batch, 3, 224, 224, device=device)
    small = torch.randn(8 * batch, 3, 96, 96, device=device)
    results = {"timm ViT-B/16": _compare(timm.create_model("vit_base_patch16_224"), [large[:batch]], clock, repeats)}
    dino = official_dino()
    name = "official DINO ViT-S/16"
    if dino is None:
        results[name] = {"not measured": "DINO_ROOT does not name a checkout of facebookresearch/dino"}
    else:
        results[name] = _compare(dino, [large, small], clock, repeats)
    return results


def _compare(
    model: nn.Module, crops: Sequence[Tensor], clock: Callable[[Callable[[], object]], float], repeats: int
) -> dict[str, Any]:
    model = model.to(crops[0].device)
    steps = {"softmax": multi_crop_step(copy.deepcopy(model), crops), SPEC: multi_crop_step(patch(model, SPEC), crops)}
    timings = in_turns(steps, repeats, clock=clock)
    softmax, entmax = timings["softmax"].median, timings[SPEC].median
    return {"softmax_ms": softmax, "entmax15_ms": entmax, "ratio": entmax / softmax}


def steps_table(results: dict[str, Any]) -> str:
    """One line per model: its step with its own softmax, with entmax-1.5, and the ratio."""
    lines = ["training step, bfloat16 autocast, AdamW:"]
    for name, row in results.items():
        if "not measured" in row:
            lines.append(f"{name}: not measured, {row['not measured']}")
        else:
            lines.append(
                f"{name}: {row['softmax_ms']:.2f} ms softmax, {row['entmax15_ms']:.2f} ms {SPEC}, x {row['ratio']:.2f}"
            )
    return "\n".join(lines)
