"""A training step of the four methods of the paper's Table 1, side by side."""

from __future__ import annotations

from typing import Any

from .step import BASELINE, bench_step

__all__ = ["METHODS", "bench_methods"]

METHODS = {
    "CLS baseline": BASELINE,
    "Register-4": "registers:num=4",
    "Specialization": "specialization",
    "Entmax-1.5": "entmax15",
}
"""The rows of Table 1, and the spec of each."""


def bench_methods(
    arch: str = "vit_small_patch16_224", batch: int = 16, repeats: int = 8, device: str = "cpu"
) -> dict[str, Any]:
    """Time one optimiser step of a timm model with each method.

    Args:
        arch: timm model name.
        batch: images per step.
        repeats: samples of each method.
        device: "cpu" or "cuda".

    Returns:
        The dictionary that ``report.table`` prints, with the names of Table 1.
    """
    specs = [spec for spec in METHODS.values() if spec != BASELINE]
    result = bench_step(arch, specs, batch, repeats, device)
    names = {spec: f"{name} ({spec})" for name, spec in METHODS.items()}
    result["title"] = "Table 1, training step: forward, backward, AdamW"
    result["baseline"] = names[BASELINE]
    result["peers"] = {names[spec]: timing for spec, timing in result["peers"].items()}
    return result
