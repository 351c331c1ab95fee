"""Table 1 from finished probes, beside the paper's figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .compare import differences, told
from .official import variant
from .record import ProbeResult, find_results, read_result

__all__ = ["COLUMNS", "PAPER", "Row", "collect", "main_metric", "render"]


@dataclass(frozen=True)
class Column:
    """One column: the probe, what it measures, and whether more is better."""

    probe: str
    title: str
    metric: str
    higher: bool
    digits: int


COLUMNS = (
    Column("imagenet", "ImageNet top-1", "top1", True, 2),
    Column("voc2012", "VOC mIoU", "mIoU", True, 2),
    Column("ade20k", "ADE20K mIoU", "mIoU", True, 2),
    Column("cityscapes", "Cityscapes mIoU", "mIoU", True, 2),
    Column("nyuv2", "NYUv2 RMSE", "rmse", False, 3),
    Column("sunrgbd", "SUN RGB-D RMSE", "rmse", False, 3),
    Column("kitti", "KITTI RMSE", "rmse", False, 3),
)
# Trained on SUN RGB-D instead of transferred: shown where someone ran it, no column of the paper's.
_TRAINED = Column("sunrgbd_train", "SUN RGB-D RMSE (trained)", "rmse", False, 3)

_BY_PROBE = {column.probe: column for column in (*COLUMNS, _TRAINED)}

OWN = "own:"
"""What the name of a probe on a user's own pictures begins with."""

# What a probe is measured by, the first that it has; whether more is better; digits.
_METRICS = {"mIoU": (True, 2), "top1": (True, 2), "rmse": (False, 3)}


def main_metric(metrics: Mapping[str, float]) -> tuple[str, bool]:
    """(the metric that a probe is judged by, whether more is better).

    Raises:
        ValueError: it has none of those that are known.
    """
    found = [name for name in _METRICS if name in metrics]
    if not found:
        raise ValueError(f"none of {', '.join(_METRICS)} is among {', '.join(metrics)}")
    return found[0], _METRICS[found[0]][0]


PAPER: dict[str, tuple[float, ...]] = {
    "CLS baseline": (69.50, 42.80, 19.85, 36.79, 0.834, 0.674, 6.743),
    "Register-4": (70.03, 44.34, 19.52, 36.00, 0.814, 0.667, 6.749),
    "Specialization": (70.04, 46.22, 20.51, 36.45, 0.829, 0.660, 6.723),
    "Entmax-1.5": (70.06, 48.78, 21.97, 37.87, 0.829, 0.669, 6.739),
}
"""The paper's Table 1: DINOv1 ViT-S/16, 200 epochs, ImageNet-1K; in the order of ``COLUMNS``."""


@dataclass
class Row:
    """One backbone.

    Attributes:
        method: its plugin spec, with its checkpoint's name where two backbones share the spec.
        best: {column: best value during training}. A column's key is the probe; where a run used other data than the
            paper's column, ``PROBE [WHAT DIFFERS]``.
        last: {column: value at the end}.
        unfinished: {column: (iterations done, iterations wanted)}.
        overrides: {column: {option: value}} of settings that differ from the shipped config.
        differences: {column: difference from another row}, as ``compare.differences`` gives them.
    """

    method: str
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    unfinished: dict[str, tuple[int, int]] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)


def collect(work_dirs: Iterable[str | Path]) -> list[Row]:
    """Rows from the ``probe.json`` files below the given folders, one per backbone.

    A transferred SUN RGB-D probe counts by its test where it was only tested.

    Raises:
        ValueError: a folder has no ``probe.json`` below it, a file is damaged, or two runs of one probe on one
            backbone disagree about what to report.
    """
    found: dict[str, dict[str, tuple[Path, ProbeResult]]] = {}
    for file in find_results(work_dirs):
        result = read_result(file)
        runs = found.setdefault(result.backbone_key, {})
        key = _column_key(file, result)
        if key in runs:
            raise ValueError(
                f"{runs[key][0]} and {file} are both {key} on {result.backbone.get('checkpoint')}: "
                "name the one to report"
            )
        runs[key] = file, result
    specs = [_method(runs) for runs in found.values()]
    rows = [_row(runs, specs.count(_method(runs)) > 1) for runs in found.values()]
    compared = differences([(row.method, runs) for row, runs in zip(rows, found.values(), strict=True)])
    for row, own in zip(rows, compared, strict=True):
        row.differences = own
    return rows


def _column_key(file: Path, result: ProbeResult) -> str:
    named = {"fast": "fast", "finetune": "fine-tuned"}
    kind = ", ".join(word for key, word in named.items() if key in (result.overrides or {}))
    if str(result.probe).startswith(OWN):
        if not result.evaluations:
            raise ValueError(f"{file} has no evaluation yet")
        metric, _ = main_metric(result.evaluations[-1].metrics)
        return f"{result.probe} {metric}" + (f" [{kind}]" if kind else "")
    if result.probe not in _BY_PROBE:
        raise ValueError(f"{file}: probe={result.probe!r} is no column; known: {', '.join(sorted(_BY_PROBE))}")
    differs = "; ".join(filter(None, (kind, variant(result.probe, result.data))))
    return f"{result.probe} [{differs}]" if differs else result.probe


def _method(runs: dict[str, tuple[Path, ProbeResult]]) -> str:
    """The spec; an assumed one is said to be."""
    backbone = next(iter(runs.values()))[1].backbone
    assumed = " (assumed)" if backbone.get("plugins_source") == "assumed" else ""
    return f"{backbone['plugins']}{assumed}"


def _row(runs: dict[str, tuple[Path, ProbeResult]], ambiguous: bool) -> Row:
    name = _method(runs)
    if ambiguous:
        backbone = next(iter(runs.values()))[1].backbone
        name += f" ({Path(str(backbone.get('checkpoint') or backbone.get('arch'))).name})"
    row = Row(name)
    for key, (file, run) in runs.items():
        column = _column(key)
        history = run.evaluations_of("val")
        try:
            values = [evaluation.metrics[column.metric] for evaluation in history or run.evaluations]
        except KeyError:
            raise ValueError(f"{file} has an evaluation without {column.metric}") from None
        if not values:
            raise ValueError(f"{file} has no evaluation yet")
        row.best[key] = max(values) if column.higher else min(values)
        row.last[key] = values[-1]
        if history and history[-1].iteration < run.max_iters:
            row.unfinished[key] = (history[-1].iteration, run.max_iters)
        if run.overrides:
            row.overrides[key] = dict(run.overrides)
    return row


def _column(key: str) -> Column:
    """The column of a key of a row's ``best``: the paper's own, or one beside it for other data."""
    probe, _, differs = key.partition(" [")
    column = _BY_PROBE.get(probe) or _own_column(probe)
    return replace(column, probe=key, title=f"{column.title} [{differs}") if differs else column


def _own_column(probe: str) -> Column:
    """Of a user's own data: ``own:NAME METRIC``."""
    name, _, metric = probe.removeprefix(OWN).rpartition(" ")
    higher, digits = _METRICS[metric]
    title = {"mIoU": "mIoU", "top1": "top-1", "rmse": "RMSE"}[metric]
    return Column(probe, f"{name} {title}", metric, higher, digits)


def render(rows: Sequence[Row], form: str = "markdown", paper: bool = True) -> str:
    """The table as text; a gap is a dash, an unfinished run has a star, one with other settings than the config's †.

    A run on other data than the paper's has a column of its own; a table of a user's own data alone has only those.
    Below are differences between rows, where the runs kept what each image contributed.

    Args:
        rows: as ``collect`` gives them.
        form: ``markdown``, ``csv``, ``latex`` or ``json``.
        paper: add the paper's rows.

    Raises:
        ValueError: unknown form.
    """
    others = {key: None for row in rows for key in row.best if key not in {column.probe for column in COLUMNS}}
    own = bool(others) and all(key.startswith(OWN) for row in rows for key in row.best)
    paper = paper and not own
    columns = [*(() if own else COLUMNS), *map(_column, others)]
    if form == "json":
        return json.dumps(
            {
                "rows": [vars(row) for row in rows],
                "paper": {name: dict(zip([c.probe for c in COLUMNS], v, strict=True)) for name, v in PAPER.items()}
                if paper
                else {},
            },
            indent=1,
        )
    lines = [["method", *(f"{column.title} {'↑' if column.higher else '↓'}" for column in columns)]]
    for row in rows:
        for which, values in (("best", row.best), ("last", row.last)):
            lines.append([f"{row.method}, {which}", *(_cell(row, column, values) for column in columns)])
    if paper:
        for name, figures in PAPER.items():
            cells = [f"{value:.{column.digits}f}" for value, column in zip(figures, COLUMNS, strict=True)]
            lines.append([f"paper: {name}", *cells, *["-"] * (len(columns) - len(COLUMNS))])
    if form == "markdown":
        return _markdown(lines) + _note(rows)
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()
    if form == "latex":
        return _latex(lines)
    raise ValueError(f"format {form!r}; use markdown, csv, latex or json")


def _cell(row: Row, column: Column, values: dict[str, float]) -> str:
    if column.probe not in values:
        return "-"
    marks = ("*" if column.probe in row.unfinished else "") + ("†" if column.probe in row.overrides else "")
    return f"{values[column.probe]:.{column.digits}f}{marks}"


def _note(rows: Sequence[Row]) -> str:
    notes = [
        f"† {row.method}, {key}: {', '.join(f'{option}={value}' for option, value in settings.items())}.\n"
        for row in rows
        for key, settings in row.overrides.items()
    ]
    notes += [
        f"\\* {row.method}, {key}: {done} of {wanted} iterations.\n"
        for row in rows
        for key, (done, wanted) in row.unfinished.items()
    ]
    notes += [
        told(row.method, _column(key).title, found, _column(key).digits)
        for row in rows
        for key, found in row.differences.items()
    ]
    return "\n" + "".join(notes) if notes else ""


def _markdown(lines: list[list[str]]) -> str:
    head, *body = lines
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body)) + "\n"


def _latex(lines: list[list[str]]) -> str:
    escaped = [
        [
            cell.replace("↑", r"$\uparrow$")
            .replace("↓", r"$\downarrow$")
            .replace("_", r"\_")
            .replace("†", r"$\dagger$")
            for cell in line
        ]
        for line in lines
    ]
    rows = [" & ".join(line) + r" \\" for line in escaped]
    start = r"\begin{tabular}{l" + "r" * (len(lines[0]) - 1) + "}"
    return "\n".join([start, r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"
