"""A benchmark's result as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_text
from ..machine import machine
from ..text import columns
from .timing import Timing

__all__ = ["as_dict", "table", "write_json"]


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
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    rows = [("", "median ms", "best ms", "spread ms", f"x {result['baseline']}")]
    for name, peer in result["peers"].items():
        median, best, spread, ratio = (f"{peer[key]:.2f}" for key in ("median_ms", "best_ms", "spread_ms", "ratio"))
        rows.append((name, median, best, spread, ratio))
    return "\n".join([result["title"], settings, where, *columns(rows, numbers=True)])


def write_json(result: Mapping[str, Any], path: Path) -> None:
    """Write ``result`` to ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=2) + "\n")
