"""Table 1 from finished probes, beside the paper's figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["COLUMNS", "PAPER", "Row", "collect", "render"]


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

PAPER: dict[str, tuple[float, ...]] = {
    "CLS baseline": (69.50, 42.80, 19.85, 36.79, 0.834, 0.674, 6.743),
    "Register-4": (70.03, 44.34, 19.52, 36.00, 0.814, 0.667, 6.749),
    "Specialization": (70.04, 46.22, 20.51, 36.45, 0.829, 0.660, 6.723),
    "Entmax-1.5": (70.06, 48.78, 21.97, 37.87, 0.829, 0.669, 6.739),
}
"""The paper's Table 1: DINOv1 ViT-S/16, 200 epochs, ImageNet-1K; in the order of `COLUMNS`."""


@dataclass
class Row:
    """One backbone.

    Attributes:
        method: its plugin spec, with its checkpoint's name where two backbones share the spec.
        best: {probe: best value during training}.
        last: {probe: value at the end}.
        unfinished: {probe: (iterations done, iterations wanted)}.
    """

    method: str
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    unfinished: dict[str, tuple[int, int]] = field(default_factory=dict)


def collect(work_dirs: Iterable[str | Path]) -> list[Row]:
    """Rows from the `probe.json` files below the given folders, one per backbone.

    A transferred SUN RGB-D probe counts by its test where it was only tested.

    Raises:
        ValueError: a folder has no `probe.json` below it, a file is damaged, or two runs of one probe on one
            backbone disagree about what to report.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in work_dirs:
        files = sorted(Path(folder).rglob("probe.json"))
        if not files:
            raise ValueError(f"no probe.json below {folder}: is it the work dir of a probe that has evaluated once?")
        for file in files:
            record = _read(file)
            backbone = found.setdefault(_key(record), {"identity": record["backbone"], "runs": {}})
            other = backbone["runs"].get(record["probe"])
            if other is not None:
                raise ValueError(
                    f"{other['file']} and {file} are both {record['probe']} on {record['backbone']['checkpoint']}: "
                    "name the one to report"
                )
            backbone["runs"][record["probe"]] = record | {"file": file}
    specs = [entry["identity"]["plugins"] for entry in found.values()]
    return [_row(entry, specs.count(entry["identity"]["plugins"]) > 1) for entry in found.values()]


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    known = {column.probe for column in (*COLUMNS, _TRAINED)}
    if record.get("probe") not in known:
        raise ValueError(f"{file}: probe={record.get('probe')!r} is no column; known: {', '.join(sorted(known))}")
    return record


def _key(record: dict[str, Any]) -> str:
    identity = record["backbone"]
    return str(identity["sha256"] or identity["arch"]) + str(identity["plugins"])


def _row(entry: dict[str, Any], ambiguous: bool) -> Row:
    identity = entry["identity"]
    name = identity["plugins"]
    if ambiguous:
        name += f" ({Path(str(identity['checkpoint'] or identity['arch'])).name})"
    row = Row(name)
    for column in (*COLUMNS, _TRAINED):
        run = entry["runs"].get(column.probe)
        if run is None:
            continue
        history = [e for e in run["evaluations"] if e["split"] == "val"]
        evaluations = history or run["evaluations"]
        values = [e["metrics"][column.metric] for e in evaluations]
        row.best[column.probe] = max(values) if column.higher else min(values)
        row.last[column.probe] = values[-1]
        if history and history[-1]["iter"] < run["max_iters"]:
            row.unfinished[column.probe] = (history[-1]["iter"], run["max_iters"])
    return row


def render(rows: Sequence[Row], form: str = "markdown", paper: bool = True) -> str:
    """The table as text; a gap is a dash, an unfinished run has a star.

    Args:
        rows: as `collect` gives them.
        form: `markdown`, `csv`, `latex` or `json`.
        paper: add the paper's rows.

    Raises:
        ValueError: unknown form.
    """
    columns = [*COLUMNS, *([_TRAINED] if any(_TRAINED.probe in row.best for row in rows) else [])]
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
    return f"{values[column.probe]:.{column.digits}f}" + ("*" if column.probe in row.unfinished else "")


def _note(rows: Sequence[Row]) -> str:
    notes = [
        f"\\* {row.method}, {probe}: {done} of {wanted} iterations.\n"
        for row in rows
        for probe, (done, wanted) in row.unfinished.items()
    ]
    return "\n" + "".join(notes) if notes else ""


def _markdown(lines: list[list[str]]) -> str:
    head, *body = lines
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body)) + "\n"


def _latex(lines: list[list[str]]) -> str:
    escaped = [
        [cell.replace("↑", r"$\uparrow$").replace("↓", r"$\downarrow$").replace("_", r"\_") for cell in line]
        for line in lines
    ]
    rows = [" & ".join(line) + r" \\" for line in escaped]
    start = r"\begin{tabular}{l" + "r" * (len(lines[0]) - 1) + "}"
    return "\n".join([start, r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"
