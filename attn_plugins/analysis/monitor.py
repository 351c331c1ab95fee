"""The run that a ``attn_plugins.Monitor`` wrote down, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..training import Observation, read_run
from .exhibit import Exhibit, Panel
from .panels import GREY, NORMAL, SMALL, dress, panel

__all__ = ["monitor_exhibit", "run_exhibit"]

PANELS = {
    "zero_share": ("Weights exactly 0", 100.0, "%"),
    "entropy": ("Entropy of a row", 1.0, "nats"),
    "support": ("Keys above 0", 1.0, "keys"),
    "cls_mass": ("[CLS] to patches", 100.0, "%"),
    "alpha": ("alpha", 1.0, ""),
}


def run_exhibit(path: Path) -> Exhibit:
    """Of a file of observations.

    Raises:
        ValueError: the file holds none, or is damaged.
    """
    return monitor_exhibit(read_run(path))


def monitor_exhibit(run: Sequence[Observation]) -> Exhibit:
    """Each measure over the steps, a line a layer (means over heads), and exact zeros per head at the end.

    Layers are those of the last observation, in their order.
    """
    last = run[-1]
    names = [layer.layer for layer in last.layers]
    shown = [name for name in PANELS if name != "alpha" or all(layer.alpha is not None for layer in last.layers)]
    rows = [
        {"step": one.step, "layer": layer.layer, "head": head, "keys": layer.keys}
        | {name: getattr(layer, name)[head] for name in shown if getattr(layer, name) is not None}
        for one in run
        for layer in one.layers
        for head in range(len(layer.zero_share))
    ]
    means = last.means()
    alt = (
        f"{len(run)} observations from step {run[0].step} to {last.step}; at the end {100 * means['zero_share']:.1f} % "
        f"of the weights are exactly 0, mean entropy {means['entropy']:.2f} nats."
    )
    return Exhibit(
        "monitor",
        "Attention while training",
        f"{last.spec}: each line is a layer, dark to light by depth, its mean over heads on a few queries of a few "
        f"images of the step. {last.layers[0].keys} keys a row in the first layer.",
        alt,
        (*(_over_steps(run, names, name) for name in shown), _heads(last)),
        rows,
    )


def _over_steps(run: Sequence[Observation], names: Sequence[str], measure: str) -> Panel:
    """One measure of every layer."""
    title, factor, unit = PANELS[measure]
    figure, axes = panel(title)
    scale, colours = Normalize(0, max(len(names) - 1, 1)), matplotlib.colormaps["cividis"]
    ends = []
    for depth, name in enumerate(names):
        points = [
            (one.step, factor * float(np.mean(getattr(layer, measure))))
            for one in run
            for layer in one.layers
            if layer.layer == name and getattr(layer, measure) is not None
        ]
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) == 1 else None
        axes.plot(steps, values, color=colours(scale(depth)), linewidth=1.4, marker=marker, markersize=4)
        ends.append(values[-1])
    dress(axes, "step", unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _bar(figure, axes, ScalarMappable(scale, colours), "layer", len(names) - 1)
    alt = (
        f"Line chart of {title.lower()} of {len(names)} layers by step. At step {run[-1].step} from "
        f"{min(ends):.3g} to {max(ends):.3g} {unit}".rstrip()
    )
    return Panel(measure, "", f"{alt}.", figure)


def _heads(last: Observation) -> Panel:
    """Exact zeros of every layer and head."""
    heads, depth = max(len(layer.zero_share) for layer in last.layers), len(last.layers)
    zeros = np.full((depth, heads), np.nan)
    for row, layer in enumerate(last.layers):
        zeros[row, : len(layer.zero_share)] = [100 * share for share in layer.zero_share]
    figure, axes = panel(f"Weights exactly 0, %, step {last.step}", 1.1 + max(1.8, min(0.15 * depth, 6.0)))
    image = axes.imshow(zeros, cmap="cividis", vmin=0, vmax=100, aspect="auto", origin="lower")
    dress(axes, "head", "layer")
    axes.grid(visible=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(12, integer=True))
    _bar(figure, axes, image, "%", 100)
    ends = f"{np.nanmin(zeros):.0f} to {np.nanmax(zeros):.0f} %"
    alt = f"Heat map of exact zeros by layer and head at step {last.step}: {ends}."
    return Panel("zero_share-heads", "", alt, figure)


def _bar(figure: Figure, axes: Any, colours: ScalarMappable, label: str, most: int) -> None:
    """What the colours mean."""
    ticks = MaxNLocator(min(max(most, 1), 6), integer=True)
    bar = figure.colorbar(colours, ax=axes, fraction=0.05, pad=0.02, ticks=ticks)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, length=0, labelcolor=GREY)
    bar.set_label(label, fontsize=NORMAL, color=GREY)
