"""What a ``attn_plugins.Monitor`` costs: the step that it looks at beside the same step."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch

from ..patching import patch
from ..training import Monitor
from .report import as_dict, table
from .step import training_step
from .timing import Timing

__all__ = ["bench_monitor", "monitor_table"]


def bench_monitor(
    arch: str = "vit_small_patch16_224",
    spec: str = "entmax15",
    batch: int = 16,
    repeats: int = 8,
    device: str = "cpu",
    every: int = 100,
) -> dict[str, Any]:
    """Time a training step of a timm model with and without being looked at, in turns.

    What the monitor does is timed by itself too, inside the very steps, since it is less than the noise of a step.

    Args:
        arch: timm model name.
        spec: what it is patched with.
        batch: images per step.
        repeats: samples of each.
        device: "cpu" or "cuda".
        every: steps from one observation to the next, for the share of the whole run.

    Returns:
        The dictionary that ``monitor_table`` prints.
    """
    import timm
    import timm.data

    torch.manual_seed(0)
    model = patch(timm.create_model(arch), spec).to(device)
    size = timm.data.resolve_model_data_config(model)["input_size"]
    images, labels = torch.randn(batch, *size, device=device), torch.randint(1000, (batch,), device=device)
    step = training_step(model, images, labels)
    samples: dict[str, list[float]] = {spec: [], f"{spec}, looked at": []}
    looking: list[float] = []
    for number in range(2 + repeats):
        for name, taken in samples.items():
            watched = _Timed(model, every=1) if name != spec else None
            with contextlib.closing(watched) if watched is not None else contextlib.nullcontext():
                begin = _now(device)
                step()
                if watched is not None:
                    watched.step()
                milliseconds = 1e3 * (_now(device) - begin)
            if number >= 2:  # compilation, allocation
                taken.append(milliseconds)
                if watched is not None:
                    looking.append(1e3 * watched.seconds)
    timings = {name: Timing(tuple(taken)) for name, taken in samples.items()}
    result = as_dict(
        "training step beside one that a Monitor looks at",
        spec,
        timings,
        device,
        {"model": arch, "batch": batch, "images": 2, "rows": 32, "every": every},
    )
    result["looking_ms"] = Timing(tuple(looking)).median
    result["share"] = result["looking_ms"] / every / timings[spec].median
    return result


def monitor_table(result: dict[str, Any]) -> str:
    """``report.table``, and the share of a run's time."""
    return (
        f"{table(result)}\nlooking takes {result['looking_ms']:.1f} ms: every {result['settings']['every']} steps, "
        f"{100 * result['share']:.3f} % of the run"
    )


class _Timed(Monitor):
    """A monitor that takes its own time."""

    seconds = 0.0

    def _watch(self, layer: Any, **told: Any) -> None:
        device = (told["call"].query if "call" in told else told["weights"]).device.type
        begin = _now(device)
        super()._watch(layer, **told)
        self.seconds += _now(device) - begin

    def _collect(self) -> Any:
        begin = time.perf_counter()
        seen = super()._collect()
        self.seconds += time.perf_counter() - begin
        return seen


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
