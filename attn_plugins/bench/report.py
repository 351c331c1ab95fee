"""A benchmark's result as text and as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .timing import Timing

__all__ = ["as_dict", "machine", "table", "write_json"]


def machine(device: str) -> dict[str, Any]:
    """Where the numbers were measured."""
    if device == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
        name, threads = model.group(1) if model else platform.machine(), torch.get_num_threads()
    else:
        name, threads = torch.cuda.get_device_name(device), None
    return {"device": device, "name": name, "threads": threads, "torch": torch.__version__}


def as_dict(
    title: str, baseline: str, timings: Mapping[str, Timing], device: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that was measured, and each median as a multiple of the baseline's."""
    base = timings[baseline].median
    peers = {name: {**timing.as_dict(), "ratio": timing.median / base} for name, timing in timings.items()}
    return {
        "title": title,
        "baseline": baseline,
        "settings": dict(settings),
        "machine": machine(device),
        "peers": peers,
    }


def table(result: Mapping[str, Any]) -> str:
    """One line per peer: median, best, spread, ratio to the baseline."""
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items() if value is not None)
    width = max(len(name) for name in result["peers"])
    lines = [
        result["title"],
        ", ".join(f"{key} {value}" for key, value in result["settings"].items()),
        where,
        f"{'':{width}}  median ms    best ms  spread ms  x {result['baseline']}",
    ]
    for name, peer in result["peers"].items():
        numbers = (peer["median_ms"], peer["best_ms"], peer["spread_ms"])
        lines.append(f"{name:{width}}" + "".join(f"{n:11.2f}" for n in numbers) + f"{peer['ratio']:8.2f}")
    return "\n".join(lines)


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """Write ``result`` to ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(path)
