"""The demo: scenes on disk → DINO pre-training → ``mim train mmseg`` probes → one table and one picture."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..analysis.attention import statistics
from ..analysis.findings import Settings as ReportSettings
from ..analysis.images import find_images
from ..analysis.page import Section
from ..analysis.report import write_report
from ..analysis.subjects import from_checkpoints
from ..checkpoints import save
from ..data.layouts.voc import write_voc
from ..files import read_json, write_text
from ..progress import printed_progress
from ..results import COLUMNS
from ..spec import parse
from ..text import columns
from .folder import claim
from .picture import draw, load_images
from .pretrain import ARCH, Method, Recipe, pretrain
from .probing import probe_columns, probe_voc, write_columns

__all__ = ["METHODS", "Settings", "run"]

METHODS = ("softmax", "registers:num=4", "specialization", "entmax15")
CROP = (96, 96)
"""Of the probe's images, in place of the protocol's 512 × 512."""

HEAD = ("method", "mIoU", "weights exactly 0", "training step")
NOTE = (
    "Linear segmentation probe of each frozen backbone; share of attention weights that are exactly zero on validation "
    "images; median time of a pre-training step. So few steps on rendered scenes show that it works, not which "
    "method wins."
)


@dataclass(frozen=True)
class Settings:
    """What a demo run computes; recorded in its folder, so that another run with other settings never mixes in.

    Attributes:
        methods: plugin specs.
        recipe: of the pre-training.
        num_train, num_val: scenes.
        size: (H, W) of the scenes, pixels.
        probe_iters: iterations of the VOC probe, in place of the protocol's 40,000.
        column_iters: iterations of each other probe.
    """

    methods: tuple[str, ...] = METHODS
    recipe: Recipe = field(default_factory=Recipe)
    num_train: int = 400
    num_val: int = 60
    size: tuple[int, int] = (192, 256)
    probe_iters: int = 100
    column_iters: int = 12

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("name at least one method, e.g. softmax")
        for spec in self.methods:
            parse(spec)
        for name, value in (
            ("--steps", self.recipe.steps),
            ("probe_iters", self.probe_iters),
            ("column_iters", self.column_iters),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    def shortened(self, divisor: int) -> Settings:
        """The same run with fewer steps and iterations."""
        return replace(
            self,
            recipe=replace(self.recipe, steps=max(self.recipe.steps // divisor, 1)),
            probe_iters=max(self.probe_iters // divisor, 1),
            column_iters=max(self.column_iters // divisor, 1),
        )


def run(
    out: Path, settings: Settings, say: Callable[[str], None] = print, command: str = "attn_plugins.demo.run"
) -> list[dict[str, Any]]:
    """Run what is not done yet, and write ``table.{json,csv}``, ``picture.png`` and ``report.html`` in ``out``.

    Every stage leaves complete files or none, so a run that was interrupted goes on where it stopped, and one
    that was complete only prints its table again.

    Args:
        out: folder of the run.
        settings: what to compute.
        say: prints a line.
        command: what the report says it was made by.

    Returns:
        The rows of the table.

    Raises:
        ValueError: ``out`` holds a run with other settings.
    """
    begin = time.monotonic()
    claim(out, asdict(settings))
    finished = out / "table.json"  # written last
    if finished.exists():
        rows: list[dict[str, Any]] = read_json(finished)["rows"]
        say(f"{out} is complete:")
    else:
        rows = _compute(out, settings, say, command)
        write_text(out / "table.csv", _csv(rows))
        write_text(finished, json.dumps({"settings": asdict(settings), "rows": rows}, indent=1) + "\n")
    say("")
    say(_table([HEAD, *_cells(rows)]))
    say("")
    say(_table([("Table 1", *(column.title for column in COLUMNS)), *_columns(rows)]))
    say("")
    say(f"table    {finished}, {out / 'table.csv'}")
    say(f"picture  {out / 'picture.png'}")
    say(f"report   {out / 'report.html'}")
    say(f"{time.monotonic() - begin:.0f} s. So few steps on rendered scenes show that it works, not which method wins.")
    return rows


def _compute(out: Path, settings: Settings, say: Callable[[str], None], command: str) -> list[dict[str, Any]]:
    say(f"[1/4] rendering {settings.num_train} + {settings.num_val} scenes in PASCAL VOC's layout")
    data = write_voc(
        out / "data",
        settings.num_train,
        settings.num_val,
        settings.recipe.seed,
        settings.size,
        progress=printed_progress("scenes"),
    )
    say(f"[2/4] pre-training {len(settings.methods)} ViTs with DINO, {settings.recipe.steps} steps each")
    methods = _pretrain(out, settings, data)
    checkpoints = [_save_backbone(out, method) for method in methods]
    say(f"[3/4] probing the frozen backbones: the seven columns of Table 1, {settings.probe_iters} iterations on VOC")
    roots = write_columns(out / "data", settings.recipe.seed)
    values = [_probe(out, *pair, data, roots, settings, say) for pair in zip(methods, checkpoints, strict=True)]
    say("[4/4] drawing the picture and the report")
    rows = [_row(method, methods[0], found, data) for method, found in zip(methods, values, strict=True)]
    _draw(out, settings, data, methods)
    _report(out, settings, data, checkpoints, rows, command)
    return rows


def _draw(out: Path, settings: Settings, data: Path, methods: Sequence[Method]) -> None:
    names = _lines(data, "val")[:5]
    images = [data / "JPEGImages" / f"{name}.jpg" for name in names]
    masks = [data / "SegmentationClass" / f"{name}.png" for name in names]
    draw(out / "picture.png", images, masks, {method.spec: method.backbone for method in methods})


def _report(
    out: Path,
    settings: Settings,
    data: Path,
    checkpoints: Sequence[Path],
    rows: Sequence[dict[str, Any]],
    command: str,
) -> None:
    side = min(settings.size[0], 128) // settings.recipe.patch_size * settings.recipe.patch_size
    write_report(
        out / "report.html",
        from_checkpoints(checkpoints),
        find_images(data),
        ReportSettings(size=side, limit=32, seed=settings.recipe.seed),
        work_dirs=[out / "probes"],
        tables=[Section("The run", NOTE, HEAD, tuple(_cells(rows)))],
        command=command,
        title="Attention plugins: demo",
    )


def _pretrain(out: Path, settings: Settings, data: Path) -> list[Method]:
    files = [data / "JPEGImages" / f"{name}.jpg" for name in _lines(data, "train")]
    show = printed_progress("steps")

    def progress(done: int, methods: Sequence[Method]) -> None:
        show(done, settings.recipe.steps)

    return pretrain(files, settings.methods, settings.recipe, out / "pretrain.pth", progress)


def _save_backbone(out: Path, method: Method) -> Path:
    path = out / "backbones" / f"{_slug(method.spec)}.pth"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        save(path, method.backbone, arch=ARCH, arch_options=method.recipe.arch_options)
    return path


def _probe(
    out: Path,
    method: Method,
    checkpoint: Path,
    data: Path,
    roots: dict[str, Path],
    settings: Settings,
    say: Callable[[str], None],
) -> dict[str, float]:
    folder = out / "probes" / _slug(method.spec)
    miou = probe_voc(method.spec, checkpoint, data, folder / "voc2012", settings.probe_iters, CROP, say)
    others = probe_columns(method.spec, checkpoint, roots, folder, settings.column_iters, say)
    return {"voc2012": miou, **others}


def _row(method: Method, baseline: Method, values: dict[str, float], data: Path) -> dict[str, Any]:
    images = load_images([data / "JPEGImages" / f"{name}.jpg" for name in _lines(data, "val")[:8]])
    with torch.no_grad():
        zeros = statistics(method.backbone.eval(), images).zero_share
    return {
        "method": method.spec,
        "mIoU": round(values["voc2012"], 2),
        "zero_share": round(float(zeros.mean()), 4),
        "step_ms": round(1000 * method.step_seconds, 1),
        "step_ratio": round(method.step_seconds / baseline.step_seconds, 3),
        **{column.probe: round(values[column.probe], column.digits) for column in COLUMNS},
    }


def _cells(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            row["method"],
            f"{row['mIoU']:.2f}",
            f"{100 * row['zero_share']:.1f} %",
            f"{row['step_ms']:.0f} ms ({row['step_ratio']:.2f}×)",
        )
        for row in rows
    ]


def _columns(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [(row["method"], *(f"{row[c.probe]:.{c.digits}f}" for c in COLUMNS)) for row in rows]


def _table(lines: Sequence[tuple[str, ...]]) -> str:
    head, *body = columns(lines)
    return "\n".join([head, "-" * len(head), *body])


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _lines(data: Path, split: str) -> list[str]:
    return (data / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()


def _slug(spec: str) -> str:
    return re.sub(r"[^\w.]+", "-", spec)
