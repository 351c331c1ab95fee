"""The demo's probes: the real configs, every one of them, with only data, sizes and iteration counts overridden."""

from __future__ import annotations

import re
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.layouts import LAYOUTS
from ..probes.run.command import data_options, iteration_options, mim_command, size_options
from ..probes.run.runner import build_runner
from ..results import COLUMNS, FILE_NAME, read_result

__all__ = ["COLUMN_PROBES", "Plan", "probe_columns", "probe_voc", "write_columns"]


@dataclass(frozen=True)
class Plan:
    """How much of one probe the demo runs.

    Attributes:
        num_train, num_val: scenes.
        size: (H, W) of the scenes, pixels.
        crop: (H, W) of the training crop.
        batch: total batch, in place of the protocol's.
    """

    num_train: int
    num_val: int
    size: tuple[int, int]
    crop: tuple[int, int]
    batch: int


COLUMN_PROBES = {
    "imagenet": Plan(80, 40, (96, 128), (64, 64), 32),
    "ade20k": Plan(32, 8, (96, 128), (64, 64), 8),
    "cityscapes": Plan(24, 6, (96, 192), (64, 64), 16),
    "nyuv2": Plan(32, 8, (96, 128), (48, 64), 8),
    "sunrgbd": Plan(4, 8, (96, 128), (48, 64), 8),
    "kitti": Plan(16, 6, (96, 320), (48, 64), 8),
}
"""The columns of Table 1 beside VOC. SUN RGB-D is the NYUv2 probe, transferred."""

Say = Callable[[str], None]


def write_columns(folder: Path, seed: int) -> dict[str, Path]:
    """Scenes in the layout of every data set but VOC; the data roots. What is there already is reused."""
    return {
        name: LAYOUTS[name](folder / name, plan.num_train, plan.num_val, seed, plan.size)
        for name, plan in COLUMN_PROBES.items()
    }


def probe_voc(
    spec: str, checkpoint: Path, data: Path, work_dir: Path, iterations: int, crop: tuple[int, int], say: Say
) -> float:
    """mIoU, in percent, of ``mim train mmseg voc2012_linear.py``; read from its work dir if it is finished.

    Raises:
        ValueError: mim failed; the message names its output.
    """
    miou = _finished(work_dir, "voc2012")
    if miou is not None:
        return miou
    options = {
        "model.backbone.checkpoint": checkpoint,
        **data_options(str(data), workers=0),
        **size_options("voc2012", crop),
        **iteration_options("voc2012", iterations),
    }
    work_dir.mkdir(parents=True, exist_ok=True)
    command = mim_command("train", "voc2012", options, "--gpus", "0", work_dir=work_dir)
    with (work_dir / "output.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            if shown := re.search(r"Iter\((train|val)\) *(\[ *\d+/\d+\])(?:.*((?:loss|mIoU): [\d.]+))?", line):
                say(f"      {spec}: voc2012 {shown[1]} {shown[2]} {shown[3] or ''}".rstrip())
    miou = None if process.wait() else _finished(work_dir, "voc2012")
    if miou is None:
        raise ValueError(f"the probe of {spec} failed; see {work_dir / 'output.txt'}")
    return miou


def probe_columns(
    spec: str, checkpoint: Path, roots: dict[str, Path], folder: Path, iterations: int, say: Say
) -> dict[str, float]:
    """The other six columns on one backbone, in this process: a dozen interpreters would start longer than they run.

    Returns:
        {probe: its metric}, as ``attn-plugins table`` reports it.
    """
    values = {}
    for name in COLUMN_PROBES:
        value = _finished(folder / name, name)
        if value is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # mmengine's, about this process; mim's are in its output
                _run_column(name, checkpoint, roots, folder, iterations)
            value = _finished(folder / name, name)
        if value is None:
            raise ValueError(f"the {name} probe of {spec} ended without a result; see {folder / name}")
        values[name] = value
        say(f"      {spec}: {name} {METRICS[name]} {value:.3f}")
    return values


METRICS = {column.probe: column.metric for column in COLUMNS}


def _run_column(name: str, checkpoint: Path, roots: dict[str, Path], folder: Path, iterations: int) -> None:
    transferred = name == "sunrgbd"
    options: dict[str, Any] = {
        "model.backbone.checkpoint": checkpoint,
        **data_options(str(roots[name]), str(roots["nyuv2"]) if transferred else None, workers=0),
        **size_options(name, COLUMN_PROBES[name].crop),
        **iteration_options(name, iterations),
        "train_cfg.total_batch_size": COLUMN_PROBES[name].batch,
    }
    if transferred:
        options["load_from"] = folder / "nyuv2" / f"iter_{iterations}.pth"
    runner = build_runner(name, options, folder / name)
    if transferred:
        runner.test()
    else:
        runner.train()


def _finished(work_dir: Path, probe: str) -> float | None:
    if not (work_dir / FILE_NAME).exists():
        return None
    result = read_result(work_dir / FILE_NAME)
    finished = [e for e in result.evaluations if e.split == "test" or e.iteration >= result.max_iters]
    return finished[-1].metrics[METRICS[probe]] if finished else None
