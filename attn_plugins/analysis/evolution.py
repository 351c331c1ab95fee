"""How what is measured of checkpoints moves while a model trains: a table that grows, curves, layer by step maps."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from ..files import write_bytes
from ..results import FILE_NAME, main_metric, read_result
from .checkpoints_of import Numbered
from .exhibit import Exhibit, Panel
from .page import Section, page
from .panels import Series, dress, heat_panels, legend, panel, style

__all__ = ["NAME", "Value", "evolution_exhibit", "read_rows", "rows_of", "values_below", "write_evolution"]

NAME = "watch"
"""Of the files."""
COLUMNS = ("unit", "number", "file", "size", "changed", "spec", "metric", "layer", "value", "problem")
_NO_MEASURE = {"model", "epoch", "layer", "head", "low", "high", "images", "skipped", "hits", "bound", "sd", "value"}

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Value:
    """One number of one checkpoint; ``layer`` is None for what is of no single layer."""

    metric: str
    layer: int | None
    value: float


def values_below(folder: Path) -> list[Value]:
    """What a probe, an analysis or a report has left in a folder.

    Of probes the last value of the metric that each is judged by: of the best learning rate where several heads were
    trained. Of analyses every column of their tables that is a number for each layer, as the mean over heads.

    Raises:
        ValueError: a result is damaged.
    """
    return [*_of_probes(folder), *_of_tables(folder)]


def _of_probes(folder: Path) -> list[Value]:
    best: dict[tuple[str, int | None], tuple[float, bool]] = {}
    results = [read_result(file) for file in sorted(folder.rglob(FILE_NAME))]
    for result in results:
        evaluations = result.evaluations_of("val")
        if not evaluations:
            continue
        metric, higher = main_metric(evaluations[-1].metrics)
        value, layers = evaluations[-1].metrics[metric], result.backbone.get("layers") or []
        layer = layers[0] if len(layers) == 1 and len(results) > 1 else None
        known = best.get((metric, layer))
        if known is None or (value > known[0]) == higher:
            best[metric, layer] = value, higher
    return [Value(metric, layer, value) for (metric, layer), (value, _) in best.items()]


def _of_tables(folder: Path) -> list[Value]:
    gathered: dict[tuple[str, int], list[float]] = {}
    for file in sorted(folder.rglob("*.csv")):
        with file.open(encoding="utf-8", newline="") as opened:
            for row in csv.DictReader(opened):
                if not (row.get("layer") or "").isdigit():
                    continue
                told = {row["measure"]: row["value"]} if "measure" in row else row
                for column, text in told.items():
                    number = _number(text)
                    if column not in _NO_MEASURE and not column.endswith(("_low", "_high")) and number is not None:
                        gathered.setdefault((f"{file.stem} {column}", int(row["layer"])), []).append(number)
    return [Value(metric, layer, fmean(numbers)) for (metric, layer), numbers in gathered.items()]


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e-?\+?\d+)?", text) else None


def rows_of(one: Numbered, run: Path, spec: str | None, values: Sequence[Value], problem: str = "") -> Rows:
    """What is kept of one checkpoint: a row for each value, or one that says what is wrong with it."""
    told = {
        "unit": one.unit,
        "number": str(one.number),
        "file": one.path.relative_to(run).as_posix(),
        "size": str(one.size),
        "changed": str(one.changed),
        "spec": spec or "not recorded",
    }
    if problem:
        return [told | {"metric": "", "layer": "", "value": "", "problem": problem}]
    return [
        told
        | {"metric": v.metric, "layer": "" if v.layer is None else str(v.layer), "value": repr(v.value), "problem": ""}
        for v in values
    ]


def read_rows(folder: Path) -> Rows:
    """What was kept so far.

    Raises:
        ValueError: the file is another's.
    """
    file = folder / f"{NAME}.csv"
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        rows = list(reader)
        if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row.values() or None in row for row in rows):
            raise ValueError(f"{file} is not what this command writes: move it away, or choose another --out")
    return rows


def evolution_exhibit(rows: Rows, run: Path) -> Exhibit:
    """A curve for each metric, and for those of layers a map of layer by step."""
    panels: list[Panel] = []
    units = sorted({row["unit"] for row in rows})
    unit = units[0] if len(units) == 1 else "number"
    good = [row for row in rows if not row["problem"]]
    for metric in dict.fromkeys(row["metric"] for row in good):
        own = [row for row in good if row["metric"] == metric]
        panels.append(_curve(metric, own, unit))
        layers = sorted({int(row["layer"]) for row in own if row["layer"]})
        if len(layers) > 1:
            panels += heat_panels(f"{_slug(metric)}-map", metric, _columns(own, layers), spread=False, time=unit)
    measured, broken = ({row["file"] for row in rows if bool(row["problem"]) is which} for which in (False, True))
    alt = f"{len(measured)} checkpoints of {run.name}, {len(broken)} that could not be measured."
    caption = f"{alt} Numbers are those in the names of files. Of analyses, means over heads."
    return Exhibit(NAME, f"While {run.name} trains", caption, alt, tuple(panels), list(rows))


def _slug(metric: str) -> str:
    return re.sub(r"[^\w.-]+", "-", metric)


def _curve(metric: str, rows: Rows, unit: str) -> Panel:
    figure, axes = panel(metric)
    lines: dict[str, dict[int, list[float]]] = {}
    last = max((int(row["layer"]) for row in rows if row["layer"]), default=None)
    for row in rows:
        number, value = int(row["number"]), float(row["value"])
        names = ["all layers together"] if not row["layer"] else ["mean over layers"]
        names += [f"layer {last}"] if row["layer"] == str(last) else []
        for name in names:
            lines.setdefault(name, {}).setdefault(number, []).append(value)
    if set(lines) == {"all layers together"}:
        lines = {"": lines["all layers together"]}
    ends = []
    for index, (name, points) in enumerate(lines.items()):
        numbers = sorted(points)
        values = [fmean(points[number]) for number in numbers]
        axes.plot(numbers, values, label=name, **style(index))
        ends.append(f"{name or metric}: {values[0]:.4g} to {values[-1]:.4g}")
    dress(axes, unit)
    if len(lines) > 1:
        legend(figure, axes)
    return Panel(_slug(metric), "", f"{metric} by {unit}. {'; '.join(ends)}.", figure)


def _columns(rows: Rows, layers: Sequence[int]) -> list[Series]:
    """A column for each checkpoint."""
    series = []
    for unit, number in sorted({(row["unit"], int(row["number"])) for row in rows}):
        values = np.full(max(layers) + 1, np.nan)
        for row in rows:
            if row["layer"] and (row["unit"], int(row["number"])) == (unit, number):
                values[int(row["layer"])] = float(row["value"])
        series.append(Series(f"{unit} {number}", "", number, values, values, values))
    return series


def write_evolution(folder: Path, rows: Rows, run: Path, command: str) -> Path:
    """Write the table, every figure as PNG and SVG, and the page, each whole or not at all; the page."""
    exhibit = evolution_exhibit(rows, run)
    exhibit.write(folder)
    checkpoints = dict.fromkeys((row["unit"], row["number"], row["file"], row["spec"], row["problem"]) for row in rows)
    told = [(unit, number, file, spec, problem or "measured") for unit, number, file, spec, problem in checkpoints]
    section = Section("Checkpoints", "", ("", "number", "file", "spec", "state"), tuple(told))
    content = page(exhibit.title, [section], [exhibit], [("Command", command)], ".")
    out = folder / f"{NAME}.html"
    write_bytes(out, content.encode(errors="backslashreplace"))
    return out
