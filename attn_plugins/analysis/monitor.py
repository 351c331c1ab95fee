"""The run that a :class:`attn_plugins.Monitor` wrote down, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..training import Observation, read_run
from .exhibit import Exhibit, Panel
from .panels import GREY, INK, SMALL, TITLE, dress

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
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    grid = figure.subplots(2, 3).flatten()
    scale, colours = Normalize(0, max(len(names) - 1, 1)), matplotlib.colormaps["cividis"]
    for axes, name in zip(grid, shown, strict=False):
        title, factor, unit = PANELS[name]
        for depth, layer_name in enumerate(names):
            points = [
                (one.step, factor * float(np.mean(getattr(layer, name))))
                for one in run
                for layer in one.layers
                if layer.layer == layer_name and getattr(layer, name) is not None
            ]
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) == 1 else None
            axes.plot(steps, values, color=colours(scale(depth)), linewidth=1.4, marker=marker, markersize=4)
        axes.set_title(title, fontsize=TITLE, loc="left", color=INK)
        dress(axes, "step", unit)
    heads = max(len(layer.zero_share) for layer in last.layers)
    zeros = np.full((len(names), heads), np.nan)
    for row, layer in enumerate(last.layers):
        zeros[row, : len(layer.zero_share)] = [100 * share for share in layer.zero_share]
    axes = grid[len(shown)]
    image = axes.imshow(zeros, cmap="cividis", vmin=0, vmax=100, aspect="auto", origin="lower")
    axes.set_title(f"Weights exactly 0, step {last.step}", fontsize=TITLE, loc="left", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("head", fontsize=SMALL, color=GREY)
    axes.set_ylabel("layer", fontsize=SMALL, color=GREY)
    figure.colorbar(image, ax=axes, label="%")
    for axes in grid[len(shown) + 1 :]:
        axes.set_axis_off()
    figure.colorbar(ScalarMappable(scale, colours), ax=list(grid[:3]), label="layer", shrink=0.9)
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
        (Panel("", "", alt, figure, wide=True),),
        rows,
    )
