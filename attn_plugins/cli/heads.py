"""Heads of the fast probe beside each other, over learning rates and layers: the backbone runs once for all of them."""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["add_sweep_options", "is_sweep", "require_sweepable", "run_sweep"]

Head = tuple[tuple[int, ...] | None, float | None]
"""(layers, learning rate); None for the config's."""


def add_sweep_options(group: argparse._ArgumentGroup) -> None:
    """``--learning-rates`` and ``--layers``."""
    group.add_argument(
        "--learning-rates", type=float, nargs="+", metavar="R", help="a head for each, one backbone pass"
    )
    group.add_argument(
        "--layers", type=int, nargs="+", metavar="L", help="a head for each block, and one for all of them"
    )


def is_sweep(args: argparse.Namespace) -> bool:
    """Whether several heads are asked for.

    Raises:
        ValueError: they are, and not of the fast probe.
    """
    asked = bool(args.learning_rates or args.layers)
    if asked and not args.fast:
        raise ValueError(
            "--learning-rates and --layers sweep the fast probe: add --fast, or give optim_wrapper.optimizer.lr=R and "
            "model.backbone.out_indices=[L] as --cfg-options of a single run"
        )
    return asked


def heads(layers: Sequence[int] | None, rates: Sequence[float] | None) -> list[Head]:
    """What is trained: first all layers together, whose features are then there for each of them."""
    chosen: list[tuple[int, ...] | None] = [None]
    if layers:
        every = tuple(dict.fromkeys(layers))
        chosen = [every, *((layer,) for layer in every)] if len(every) > 1 else [every]
    asked: list[float | None] = list(rates) if rates else [None]
    return list(itertools.product(chosen, asked))


def require_sweepable(config: Config) -> None:
    """Refuse a sweep of a probe that is one itself.

    Raises:
        ValueError: it is the grid of classifiers.
    """
    if config.model.type == "FastClassifierGrid":
        raise ValueError(
            "every classification probe trains a classifier for each of its learning rates: leave --learning-rates and "
            "--layers out, or set model.learning_rates and model.backbone.out_indices by --cfg-options"
        )


def run_sweep(config: Config, args: argparse.Namespace, work_dir: Path) -> int:
    """Train every head in a folder of its own below ``work_dir``; print them, the best last."""
    from ..probes.run.command import mim_command
    from ..probes.run.folder import write_config
    from ..results import FILE_NAME, main_metric, read_result
    from ..text import columns
    from .probe import launch_options

    rows: list[tuple[float, list[str]]] = []
    for layers, rate in heads(args.layers, args.learning_rates):
        own, name = copy.deepcopy(config), []
        if layers is not None:
            own.model.backbone.out_indices = list(layers)
            name.append("layers_" + "_".join(map(str, layers)))
        if rate is not None:
            own.optim_wrapper.optimizer.lr = rate
            name.append(f"lr_{rate:g}")
        folder = work_dir / "-".join(name)
        written = write_config(own, folder / "config.py", f"One head of a sweep of the fast probe: {', '.join(name)}.")
        command = mim_command("train", str(written), {}, *launch_options(args), work_dir=folder)
        status = subprocess.run(command, env=os.environ, check=False).returncode
        if status:
            return status
        last = read_result(folder / FILE_NAME).evaluations_of("val")[-1].metrics
        metric, higher = main_metric(last)
        value = last[metric]
        told = " + ".join(map(str, layers)) if layers else "config's"
        rows.append(
            (value if higher else -value, [told, f"{rate:g}" if rate else "config's", f"{value:.2f}", str(folder)])
        )
    ordered = [row for _, row in sorted(rows, key=lambda row: row[0])]
    print("\n".join(columns([["layers", "learning rate", metric, "work dir"], *ordered])))
    print("The best is chosen on the images that it is measured on: on other images it will be a little worse.")
    return 0
