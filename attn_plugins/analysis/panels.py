"""What figures are drawn with: lines and heat maps by layer, for two models and for fifty.

Up to ``LINES`` models are lines in one panel. More are heat maps, layer by model or by epoch, one of the value and
one of its spread, all on one scale. A panel is as wide as a phone, and no text in it is below 9 points, which are 9
pixels there.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .exhibit import Panel
from .measure import Measured
from .subjects import Subject

__all__ = [
    "COLOURS",
    "LINES",
    "Series",
    "by_layer",
    "contrast",
    "dress",
    "heat_panels",
    "legend",
    "panel",
    "style",
    "text",
]

# Okabe and Ito's, darkened where they were below 3:1 on white.
COLOURS = ("#0072B2", "#C24E00", "#00805E", "#B5559A", "#8A6D00", "#2F7FB5")
MARKERS = "osD^vP"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), "-.", (0, (3, 1)), (0, (1, 1)), (0, (7, 2, 1, 2)))
INK, GREY, RULE = "#1b1f24", "#4d5661", "#d0d5db"
LINES = 6
WIDTH = 4.4
SMALL, NORMAL, TITLE = 9.0, 9.5, 10.5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One model's line: a value for each layer.

    Attributes:
        label: the model's name.
        spec, epoch: models of one spec with epochs are a time series.
        value, low, high: ``[L]``, as they are shown; NaN where there is none.
    """

    label: str
    spec: str
    epoch: int | None
    value: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, subject: Subject, measured: Measured) -> Series:
        """A measure with its interval."""
        low, high = measured.interval()
        scale = measured.definition.scale
        return cls(subject.name, subject.spec, subject.epoch, measured.mean * scale, low * scale, high * scale)


def style(index: int) -> dict[str, Any]:
    """Colour, marker and dash of the line ``index``."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markersize": 4,
        "linewidth": 1.6,
    }


def styles(series: Sequence[Series | Subject]) -> list[dict[str, Any]]:
    """A style for each line or model; epochs of a spec go from dark to bright, specs differ in marker and dash."""
    specs = list(dict.fromkeys(one.spec for one in series))
    epochs = sorted({one.epoch for one in series if one.epoch is not None})
    if len(epochs) < 2 or any(one.epoch is None for one in series):
        return [style(index) for index in range(len(series))]
    colours = matplotlib.colormaps["plasma"](np.linspace(0, 0.6, len(epochs)))
    found = []
    for one in series:
        rank = epochs.index(one.epoch or 0)
        found.append(style(specs.index(one.spec)) | {"color": matplotlib.colors.to_hex(colours[rank])})
    return found


def panel(title: str, height: float = 2.9) -> tuple[Figure, Any]:
    """A figure of the width of a phone, and its axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(textwrap.fill(title, 52), fontsize=TITLE, loc="left", color=INK)
    return figure, axes


def dress(axes: Any, x: str = "layer", y: str = "", depth: int | None = None) -> None:
    """Labels, grid and ticks."""
    axes.set_xlabel(x, fontsize=NORMAL, color=GREY)
    axes.set_ylabel(y, fontsize=NORMAL, color=GREY)
    axes.grid(axis="y", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, color=RULE, labelcolor=GREY)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    if depth is not None:
        axes.set_xticks(range(0, depth, max(1, math.ceil(depth / 12))))


def legend(figure: Figure, axes: Any) -> None:
    """The lines' names below the axes, wrapped; the figure grows by their height."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    wrapped = [textwrap.fill(label, 50) for label in labels]
    columns = 2 if max(map(len, labels)) <= 22 and len(labels) > 1 else 1
    lines = sum(label.count("\n") + 1 for label in wrapped) / columns
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.19 * math.ceil(lines) + 0.1)
    figure.legend(
        handles, wrapped, loc="outside lower left", ncols=columns, frameon=False, fontsize=SMALL, labelcolor=INK
    )


def by_layer(
    name: str,
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    spread: str = "width of the 95 % interval",
    bounds: tuple[float, float] = (-math.inf, math.inf),
    bound: tuple[str, float] | None = None,
    looks: Sequence[dict[str, Any]] | None = None,
    note: str = "",
) -> list[Panel]:
    """Panels of one measure: lines with their bands, or for many models heat maps of the value and its spread.

    Args:
        name: of the files.
        title, unit: of the measure.
        series: the models.
        spread: what ``high - low`` is, for the second heat map.
        bounds: values that can be, within which axes stay.
        bound: name and height of a line to compare with.
        looks: the lines' styles (``styles``), where others stand beside these in other figures.
        note: of the panels.
    """
    told = f"{title}, {unit}" if unit else title
    if len(series) > LINES:
        spreads = [Series(s.label, s.spec, s.epoch, s.high - s.low, s.low, s.high) for s in series]
        return [
            *heat_panels(name, told, series, spread=False, note=note),
            *heat_panels(f"{name}-spread", f"{told}: {spread}", spreads, spread=False),
        ]
    figure, axes = panel(told)
    depth = max(len(one.value) for one in series)
    for one, look in zip(series, looks or styles(series), strict=True):
        layers = np.flatnonzero(np.isfinite(one.value))
        axes.plot(layers, one.value[layers], label=text(one.label), **look)
        axes.fill_between(layers, one.low[layers], one.high[layers], color=look["color"], alpha=0.14, linewidth=0)
    if bound is not None:
        axes.axhline(bound[1], color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(bound[0], (depth - 1, bound[1]), ha="right", va="bottom", fontsize=SMALL, color=GREY)
    dress(axes, y=unit, depth=depth)
    if not any(np.nan_to_num(part).any() for one in series for part in (one.value, one.low, one.high)):
        axes.set_ylim(-0.05, 1)  # nothing but zeros, which have no scale of their own
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, bounds[0]), min(high, bounds[1] + 0.02 * (bounds[1] - bounds[0])))
    if math.isfinite(bounds[0]) and low < bounds[0] + 0.35 * (high - low):
        axes.set_ylim(bottom=bounds[0])
    legend(figure, axes)
    ends = "; ".join(f"{one.label}: {_last(one.value):.3g} in the last layer" for one in series)
    return [Panel(name, "", f"Line chart of {told} by layer. {ends}.", figure, note=note)]


def dots(
    name: str,
    title: str,
    unit: str,
    scores: Sequence[tuple[str, float, float, float]],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    bound: tuple[str, float] | None = None,
    note: str = "",
) -> Panel:
    """One number a model, a row each, with its interval; as many as there are.

    Args:
        name: of the files.
        title, unit: of the measure.
        scores: name, value, lower and upper end.
        bounds: values that can be, within which the axis stays.
        bound: name and place of a line to compare with.
        note: of the panel.
    """
    told = f"{title}, {unit}" if unit else title
    names = [textwrap.fill(label, 30) for label, *_ in scores]
    lines = sum(label.count("\n") + 1 for label in names)
    figure, axes = panel(told, 0.8 + 0.21 * (lines + (bound is not None)))
    for row, (_, value, low, high) in enumerate(scores):
        axes.plot([low, high], [row, row], color=COLOURS[0], linewidth=2, alpha=0.45, solid_capstyle="butt")
        axes.plot(value, row, "o", color=COLOURS[0], markersize=5)
    dress(axes, unit)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_yticks(range(len(scores)), [text(label) for label in names])
    axes.set_ylim(len(scores) - 0.5, -0.5 if bound is None else -1.3)
    if bound is not None:
        axes.axvline(bound[1], color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        right = bound[1] > sum(axes.get_xlim()) / 2
        axes.annotate(
            bound[0],
            (bound[1], -0.9),
            ha="right" if right else "left",
            va="center",
            fontsize=SMALL,
            color=GREY,
            xytext=(-4 if right else 4, 0),
            textcoords="offset points",
        )
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, bounds[0]), min(high, bounds[1]))
    values = "; ".join(f"{label}: {value:.3g} ({low:.3g} to {high:.3g})" for label, value, low, high in scores)
    beside = "" if bound is None else f" {bound[0]}: {bound[1]:.3g}."
    return Panel(name, "", f"{told}. {values}.{beside}", figure, note=note)


def heat_panels(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    scale: tuple[float, float] | None = None,
    foot: tuple[str, Sequence[float]] | None = None,
    spread: bool = True,
    note: str = "",
    time: str = "epoch",
) -> list[Panel]:
    """Heat maps, layers from the bottom up: a panel a time series, columns its epochs, and one of the other models.

    Args:
        name: of the files.
        title: above each.
        series: the models.
        scale: least and greatest value of the colours, which all panels share; by default those of the values.
        foot: name and values, one a model, of a row below layer 0.
        spread: write the interval into the cells too, where there is room.
        note: of the panels.
        time: what the numbers of a time series count.
    """
    groups = _groups(series, time)
    values = np.concatenate([one.value for one in series])
    low, high = scale or (float(np.nanmin(values)), float(np.nanmax(values)))
    found = []
    for number, (what, members) in enumerate(groups):
        own = f"{name}-{number + 1}" if len(groups) > 1 else name
        below = None if foot is None else (foot[0], [foot[1][series.index(one)] for one in members])
        figure = _heat(f"{title}: {what}" if what else title, members, (low, high), below, spread, time)
        ends = "; ".join(f"{one.label}: {_last(one.value):.3g} in the last layer" for one in members)
        found.append(Panel(own, "", f"Heat map of {title} by layer and model. {ends}.", figure, note=note))
    return found


def _groups(series: Sequence[Series], time: str) -> list[tuple[str, list[Series]]]:
    """Time series by their spec, each in the order of its epochs; all others together."""
    specs = dict.fromkeys(one.spec for one in series)
    of = {spec: [one for one in series if one.spec == spec and one.epoch is not None] for spec in specs}
    timed = {spec: sorted(some, key=lambda one: one.epoch or 0) for spec, some in of.items() if len(some) > 2}
    others = [one for one in series if not any(one in some for some in timed.values())]
    groups = [(f"{spec}, by {time}" if spec else "", some) for spec, some in timed.items()]
    return [*groups, *([("" if not groups else "others", others)] if others else [])]


def _heat(
    title: str,
    series: Sequence[Series],
    scale: tuple[float, float],
    foot: tuple[str, Sequence[float]] | None,
    spread: bool,
    time: str,
) -> Figure:
    depth, columns = max(len(one.value) for one in series), len(series)
    extra = 0 if foot is None else 1
    values = np.full((depth + extra, columns), np.nan)
    for column, one in enumerate(series):
        values[extra : extra + len(one.value), column] = one.value
        if foot is not None:
            values[0, column] = foot[1][column]
    timed = all(one.epoch is not None for one in series) and len({one.epoch for one in series}) == columns > 2
    names = [str(one.epoch) for one in series] if timed else [_column(one.label, columns) for one in series]
    upright = not timed and columns > 3
    beneath = spread and columns == 4  # four values with intervals beside them would touch
    row = min(0.4 if beneath else 0.27, max(0.14, 6 / len(values)))
    longest = max(max(map(len, name.split("\n"))) for name in names)
    figure, axes = panel(title, row * len(values) + 1.1 + (0.078 * longest if upright else 0.15))
    shown = axes.imshow(values, cmap="cividis", aspect="auto", origin="lower", vmin=scale[0], vmax=scale[1])
    step = max(1, math.ceil(len(values) * 0.16 / (row * len(values))))
    axes.set_yticks(
        [*range(extra), *range(extra, len(values), step)], [*([foot[0]] if foot else []), *range(0, depth, step)]
    )
    thin = max(1, math.ceil(columns / 16)) if timed else 1
    axes.set_xticks(range(0, columns, thin), names[::thin], rotation=90 if upright else 0)
    axes.set_xlabel(time if timed else "", fontsize=NORMAL, color=GREY)
    axes.set_ylabel("layer", fontsize=NORMAL, color=GREY)
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=GREY)
    if extra:
        axes.axhline(0.5, color="white", linewidth=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if columns <= 8 and row > 0.2:
        apart = "\n" if beneath else " "
        _numbers(axes, values, series, extra, shown, apart if spread and columns <= 4 and row > 0.35 * beneath else "")
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, length=0, labelcolor=GREY)
    return figure


def _numbers(axes: Any, values: Floats, series: Sequence[Series], extra: int, shown: Any, apart: str) -> None:
    """Each cell's value, with its interval behind ``apart`` unless that is empty, in black or white."""
    digits = 0 if np.nanmax(np.abs(values)) >= 10 else 2
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        said = f"{value:.{digits}f}"
        one = series[column]
        if apart and row >= extra and np.isfinite(one.high[row - extra]):
            said += f"{apart}({one.low[row - extra]:.{digits}f}–{one.high[row - extra]:.{digits}f})"
        ground = shown.cmap(shown.norm(value))[:3]
        ink = max(("#ffffff", "#000000"), key=lambda colour: contrast(matplotlib.colors.to_rgb(colour), ground))
        axes.text(column, row, said, ha="center", va="center", fontsize=SMALL, color=ink, linespacing=1.0)


def contrast(a: Sequence[float], b: Sequence[float]) -> float:
    """Contrast of two colours of three numbers in [0, 1], 1 to 21 (WCAG 2.2, 1.4.3)."""

    def luminance(colour: Sequence[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((luminance(a), luminance(b)))
    return (bright + 0.05) / (dark + 0.05)


def _column(label: str, columns: int) -> str:
    """A column's name: broken where few stand side by side, cut where it stands upright."""
    if columns > 3:
        return text(label if len(label) <= 34 else f"{label[:16]}…{label[-17:]}")
    return text(textwrap.fill(label.replace("+", "+ "), max(10, 40 // columns)).replace("+ ", "+"))


def text(name: str) -> str:
    """A name as it is: matplotlib would set what stands between two $ as a formula, and leave _x out of a legend."""
    shown = name.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _last(values: Floats) -> float:
    held = values[np.isfinite(values)]
    return float(held[-1]) if len(held) else math.nan
