"""Time several functions fairly: in turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Clock", "Timing", "cuda_clock", "in_turns", "peak_mib", "wall_clock"]

Clock = Callable[[Callable[[], object]], float]
"""Runs a function once and returns the milliseconds it took."""


@dataclass(frozen=True)
class Timing:
    """What one function took, in milliseconds."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        return min(self.samples)

    @property
    def spread(self) -> float:
        """Distance between the first and the third quartile."""
        if len(self.samples) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.samples, n=4, method="inclusive")
        return third - first

    def as_dict(self) -> dict[str, float | int]:
        return {"median_ms": self.median, "best_ms": self.best, "spread_ms": self.spread, "repeats": len(self.samples)}


def wall_clock(function: Callable[[], object]) -> float:
    """A ``Clock`` for work that is done when the function returns."""
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3


def cuda_clock(function: Callable[[], object], calls: int = 1) -> float:
    """A ``Clock`` for work on a GPU: CUDA events around ``calls`` calls, the mean of one."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / calls


def in_turns(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2, clock: Clock = wall_clock
) -> dict[str, Timing]:
    """Time every function ``repeats`` times, taking turns.

    Args:
        functions: by name.
        repeats: samples of each.
        warmup: untimed calls of each beforehand (compilation, caches).
        clock: how one call is timed.

    Raises:
        ValueError: repeats < 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats is 1 or more, got {repeats}")
    for function in functions.values():
        for _ in range(warmup):
            function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            samples[name].append(clock(function))
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def peak_mib() -> float:
    """The most memory that this process has held, in MiB (Linux: ``VmHWM`` of ``/proc/self/status``)."""
    # Not getrusage: its maximum counts what the parent held when it started this process.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
