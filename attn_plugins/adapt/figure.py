"""The trade-off of a calibration: what is left of the features at how many exact zeros."""

from __future__ import annotations

from pathlib import Path

from ..files import written
from .calibrate import Calibration, Likeness

__all__ = ["draw"]

KINDS = {
    "patches": ("patches", "#0072B2", "o"),
    "centred": ("patches, mean taken off", "#D55E00", "s"),
    "cls": ("[CLS]", "#009E73", "D"),
}
"""What is drawn: its name, colour (Okabe and Ito's) and marker."""


def draw(found: Calibration, path: Path) -> None:
    """Write a figure, one panel for each size of the images; the suffix says the format."""
    from matplotlib.figure import Figure

    sizes = [line.size for line in found.after]
    figure = Figure(figsize=(1 + 4 * len(sizes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        before, after, tried = (_of(size, lines) for lines in (found.before, found.after, found.curve))
        for kind, (name, colour, marker) in KINDS.items():
            line = sorted([*tried, *after], key=lambda x: x.zeros)
            axes.plot(_percent(line), [getattr(x, kind) for x in line], color=colour, linewidth=1.8)
            axes.plot(_percent(tried), [getattr(x, kind) for x in tried], marker, color=colour, label=name)
            axes.plot(_percent(after), [getattr(x, kind) for x in after], "*", color=colour, markersize=13)
            axes.plot(_percent(before), [getattr(x, kind) for x in before], "x", color=colour, markersize=8)
        axes.set_title(f"{size} pixels", fontsize=10.5, loc="left")
        axes.set_xlabel("weights that are exactly zero, %")
        axes.grid(axis="y", color="#e3e6ea")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("cosine to softmax's features")
    panels[0].legend(frameon=False, fontsize=9, title="star: calibrated, cross: as patched", title_fontsize=8.5)
    with written(path) as partial, partial.open("wb") as file:
        figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=150)


def _of(size: str, lines: tuple[Likeness, ...]) -> list[Likeness]:
    return [line for line in lines if line.size == size]


def _percent(lines: list[Likeness]) -> list[float]:
    return [100 * line.zeros for line in lines]
