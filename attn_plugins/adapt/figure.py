"""The trade-off of a calibration: what is left of the features at how many exact zeros."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import written
from .calibrate import Calibration, Likeness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "drawn"]

KINDS = {
    "patches": ("patches", "#0072B2", "o"),
    "centred": ("patches, mean taken off", "#D55E00", "s"),
    "cls": ("[CLS]", "#009E73", "D"),
}
"""What is drawn: its name, colour (Okabe and Ito's) and marker."""
STAR: dict[str, Any] = {"marker": "*", "markersize": 13, "linestyle": "none"}
CROSS: dict[str, Any] = {"marker": "x", "markersize": 8, "markeredgewidth": 2, "linestyle": "none"}


def draw(found: Calibration, path: Path) -> None:
    """Write the figure; the suffix says the format."""
    figure = drawn(found)
    with written(path) as partial, partial.open("wb") as file:
        figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=150)


def drawn(found: Calibration) -> Figure:
    """One panel for each size of the images, on one scale."""
    from matplotlib.figure import Figure

    sizes = [line.size for line in found.after]
    figure = Figure(figsize=(1 + 4 * len(sizes), 4), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        before, after, tried = (_of(size, lines) for lines in (found.before, found.after, found.curve))
        for kind, (name, colour, marker) in KINDS.items():
            line = sorted([*tried, *after], key=lambda x: x.zeros)
            axes.plot(_percent(line), [getattr(x, kind) for x in line], color=colour, linewidth=1.8)
            axes.plot(_percent(tried), [getattr(x, kind) for x in tried], marker, color=colour)
            axes.plot(_percent(after), [getattr(x, kind) for x in after], color=colour, **STAR)
            axes.plot(_percent(before), [getattr(x, kind) for x in before], color=colour, **CROSS)
            axes.plot([], [], marker=marker, color=colour, linewidth=1.8, label=name)
        axes.set_title(f"{size.replace('x', ' x ')} pixels", fontsize=10.5, loc="left")
        axes.set_xlabel("weights that are exactly zero, %")
        axes.grid(axis="y", color="#e3e6ea")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("cosine to softmax's features")
    panels[0].plot([], [], color="#4d5661", label="calibrated", **STAR)
    panels[0].plot([], [], color="#4d5661", label="as patched", **CROSS)
    handles, names = panels[0].get_legend_handles_labels()
    columns = 3 if len(sizes) == 1 else 5
    figure.legend(handles, names, frameon=False, fontsize=9, ncols=columns, loc="outside lower left")
    figure.suptitle(textwrap.fill(_told(found), 56 * len(sizes)), fontsize=10.5, x=0.01, ha="left")
    return figure


def _told(found: Calibration) -> str:
    """What was fitted, and on how many images."""
    fitted = found.scales.fitted
    others = f"measured on {fitted['measured_on']} others" if fitted["held_out"] else "measured on these"
    return f"{found.scales.spec}, fitted on {fitted['images']} images, {others}"


def _of(size: str, lines: tuple[Likeness, ...]) -> list[Likeness]:
    return [line for line in lines if line.size == size]


def _percent(lines: list[Likeness]) -> list[float]:
    return [100 * line.zeros for line in lines]
