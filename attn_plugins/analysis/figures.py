"""The figures. Colours are Okabe and Ito's and cividis; lines differ in marker and dash too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .exhibit import Exhibit
from .findings import Findings
from .layers import LayerProbe
from .pca import pca_rgb

__all__ = ["attention_exhibit", "layers_exhibit", "norms_exhibit", "overlay_exhibit", "pca_exhibit", "pib_exhibit"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), "-.", (0, (3, 1)))
GREY = "#5b6470"


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markersize": 4.5,
        "linewidth": 1.8,
    }


def _dress(axes: Any, title: str, x: str = "layer", y: str = "") -> None:
    axes.set_title(title, fontsize=10.5, loc="left", color="#1b1f24")
    axes.set_xlabel(x, fontsize=9, color=GREY)
    axes.set_ylabel(y, fontsize=9, color=GREY)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color="#c3c8ce", labelcolor="#3b424a")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c3c8ce")


def _layer_axis(axes: Any, depth: int) -> None:
    axes.set_xticks(range(0, depth, max(1, math.ceil(depth / 12))))


def _legend(figure: Figure, axes: Any, count: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = min(count, 2 if max(map(len, labels), default=0) > 22 else 4)
    figure.legend(
        handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False, fontsize=9
    )


def pca_exhibit(
    found: Sequence[Findings], images: NDArray[np.float32], basis: str = "shared", foreground: float | None = None
) -> Exhibit:
    """Figure 1: a row an image ``[N, S, S, 3]``, the input and then each model's first three components as colours."""
    pictures = pca_rgb([f.features for f in found if f.features is not None], basis, foreground)
    names = [f.subject.name for f in found]
    columns = 1 + len(found)
    figure = Figure(figsize=(1.75 * columns, 1.75 * len(images) + 0.3), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(images), columns, squeeze=False))
    for row, image in enumerate(images):
        for column, picture in enumerate([image, *(p[row].numpy() for p in pictures)]):
            axes = grid[row, column]
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(_label(["input", *names][column]), fontsize=9)
    rows = [
        {"model": f.subject.name, "image": n, "red": red, "green": green, "blue": blue}
        for f, picture in zip(found, pictures, strict=True)
        for n, (red, green, blue) in enumerate(picture.mean(dim=(1, 2)).tolist())
    ]
    return Exhibit(
        "pca",
        "Patch features as colours",
        "First three principal components of the last layer's patch features (final norm applied) as red, green and "
        f"blue; {'fitted on all images together' if basis == 'shared' else 'fitted on each image'}, order and signs "
        "brought into line with the first model, so that colours compare. The CSV has each picture's mean colour.",
        f"{len(images)} images in rows; in columns the input and the principal components of {', '.join(names)}.",
        figure,
        rows,
        vector=False,
    )


def pib_exhibit(found: Sequence[Findings]) -> Exhibit:
    """Figure 2a: point-in-box, layers from the bottom up, a column a model or epoch."""
    results = [(f.subject, f.pib) for f in found if f.pib is not None]
    values = np.full((max(len(p.hits) for _, p in results), len(results)), np.nan)
    for column, (_, result) in enumerate(results):
        values[: len(result.hits), column] = [100 * share for share in result.share]
    figure = Figure(figsize=(max(7.0, 0.95 * len(results) + 2), 0.34 * len(values) + 1.2), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(values, cmap="cividis", aspect="auto", origin="lower", vmin=0, vmax=100)
    axes.set_yticks(range(len(values)))
    axes.set_xticks(range(len(results)), [_label(s.name) for s, _ in results], fontsize=8.5)
    axes.set_ylabel("layer", fontsize=9, color=GREY)
    axes.tick_params(length=0, labelsize=8.5)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            low, high = (100 * bound for bound in results[column][1].interval(row))
            axes.text(
                column,
                row,
                f"{value:.0f} ({low:.0f}–{high:.0f})",
                ha="center",
                va="center",
                fontsize=7.5,
                color="#fff" if value < 55 else "#111",
            )
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("point-in-box, %", fontsize=9, color=GREY)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    rows = [{"model": s.name, "epoch": s.epoch} | row for s, p in results for row in p.table()]
    best = ", ".join(f"{s.name}: {100 * p.share[-1]:.0f} % in the last layer" for s, p in results)
    images = ", ".join(sorted({str(p.images) for _, p in results}))
    return Exhibit(
        "pib",
        "Point-in-box",
        f"Share of {images} images whose patch most similar to [CLS] has its centre inside a foreground box, per layer "
        "(paper's Figure 2a); Wilson's 95 % interval in brackets.",
        f"Heat map of point-in-box by layer and model. {best}.",
        figure,
        rows,
    )


def attention_exhibit(found: Sequence[Findings]) -> Exhibit:
    """Entropy, exact zeros, support and [CLS] mass by layer; lines are means over heads, bands their range."""
    results = [(f.subject, f.attention) for f in found if f.attention is not None]
    figure = Figure(figsize=(8.4, 5.8), layout="constrained")
    panels = figure.subplots(2, 2)
    depth = max(len(a.bound) for _, a in results)
    titles = {
        "entropy": ("Entropy (dotted: 15th percentile)", "nats"),
        "zero_share": ("Weights that are exactly zero", "%"),
        "support": ("Support size", "keys with weight"),
        "cls_mass": ("[CLS] mass on patches", "%"),
    }
    for axes, (name, (title, unit)) in zip(panels.flat, titles.items(), strict=True):
        scale = 100 if unit == "%" else 1
        for index, (subject, stats) in enumerate(results):
            values = getattr(stats, name).numpy() * scale
            x = np.arange(len(values))
            style = _style(index)
            axes.plot(x, values.mean(1), label=_text(subject.name), **style)
            axes.fill_between(x, values.min(1), values.max(1), color=style["color"], alpha=0.13, linewidth=0)
            if name == "entropy":
                axes.plot(x, stats.entropy_p15.numpy().mean(1), color=style["color"], linestyle=":", linewidth=1.1)
        if name == "entropy":
            bound = max(float(a.bound.max()) for _, a in results)
            axes.axhline(bound, color=GREY, linewidth=1, linestyle=(0, (1, 3)))
            axes.annotate("log n", (depth - 1, bound), ha="right", va="bottom", fontsize=8, color=GREY)
        _dress(axes, title, y=unit)
        _layer_axis(axes, depth)
        axes.set_ylim(bottom=0)
    _legend(figure, panels[0, 0], len(results))
    rows = [{"model": s.name} | row for s, a in results for row in a.table()]
    told = "; ".join(
        f"{s.name}: mean entropy {float(a.entropy.mean()):.2f}, {100 * float(a.zero_share.mean()):.0f} % exact zeros"
        for s, a in results
    )
    return Exhibit(
        "attention",
        "How dense attention is",
        "Per layer: mean over heads (line) and the heads' range (band), over all images and queries. Entropy after "
        "Hyeon-Woo et al. (2023); log n is that of uniform attention.",
        f"Four line charts by layer. {told}.",
        figure,
        rows,
    )


def overlay_exhibit(
    found: Sequence[Findings], image: NDArray[np.float32], layer: int = -1, heads: Sequence[int] | None = None
) -> Exhibit:
    """What [CLS] looks at in one image ``[S, S, 3]``: the mean over heads and chosen heads, a row a model."""
    results = [(f.subject, f.overlay) for f in found if f.overlay is not None]
    chosen = list(range(min(4, results[0][1].shape[0]))) if heads is None else list(heads)
    figure = Figure(figsize=(1.6 * (2 + len(chosen)), 1.6 * len(results) + 0.3), layout="constrained")
    grid = figure.subplots(len(results), 2 + len(chosen), squeeze=False)
    side = image.shape[0]
    rows: list[dict[str, Any]] = []
    for row, (subject, maps) in enumerate(results):
        panels = [("mean of heads", maps.mean(0)), *((f"head {head}", maps[head]) for head in chosen)]
        grid[row, 0].imshow(image)
        grid[row, 0].set_ylabel(_label(subject.name), fontsize=8.5)
        for axes, (title, weights) in zip(grid[row, 1:], panels, strict=True):
            axes.imshow(image.mean(-1), cmap="gray", vmin=-0.3, vmax=1.3)
            axes.imshow(
                weights.numpy(), cmap="cividis", alpha=0.72, vmin=0, extent=(-0.5, side - 0.5, side - 0.5, -0.5)
            )
            if row == 0:
                axes.set_title(title, fontsize=9)
            zero = float((weights == 0).double().mean())
            rows.append({"model": subject.name, "map": title, "peak": float(weights.max()), "zero_share": zero})
        for axes in grid[row]:
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
    grid[0, 0].set_title("input", fontsize=9)
    where = "the last layer" if layer == -1 else f"layer {layer}"
    return Exhibit(
        "overlay",
        "What [CLS] looks at",
        f"Attention of [CLS] over the patches in {where}, each map scaled by its own maximum (brighter is more).",
        f"The input and attention maps of {', '.join(s.name for s, _ in results)}: mean of heads and heads {chosen}.",
        figure,
        rows,
        vector=False,
    )


def norms_exhibit(found: Sequence[Findings]) -> Exhibit:
    """Histogram of the last layer's token norms, and the share of outliers by layer."""
    results = [(f.subject, f.norms) for f in found if f.norms is not None]
    figure = Figure(figsize=(8.4, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    depth = max(len(n.counts) for _, n in results)
    for index, (subject, norms) in enumerate(results):
        style = _style(index)
        counts = norms.counts[-1].double().view(-1, 20).sum(1)
        edges = norms.edges[::20]
        left.stairs(
            (100 * counts / counts.sum()).numpy(),
            edges.numpy(),
            color=style["color"],
            linestyle=style["linestyle"],
            linewidth=1.6,
        )
        right.plot((100 * norms.outlier_share()).numpy(), label=_text(subject.name), **style)
    seen = [norms.quantile(share)[-1] for _, norms in results for share in (0.0001, 0.9999)]
    left.set_xscale("log", base=2)
    left.set_xlim(float(min(seen)) / 1.5, float(max(seen)) * 1.5)
    _dress(left, "Last layer's patch norms", "L2 norm", "% of tokens")
    _dress(right, "Outliers: above 3 × the median", y="% of tokens")
    right.set_ylim(bottom=0)
    _layer_axis(right, depth)
    _legend(figure, right, len(results))
    rows = [{"model": s.name} | row for s, n in results for row in n.table()]
    told = "; ".join(
        f"{s.name}: {100 * float(n.outlier_share()[-1]):.1f} % outliers in the last layer" for s, n in results
    )
    return Exhibit(
        "norms",
        "Norms of patch tokens",
        "Block outputs before the final norm. High-norm tokens are the artifacts of Darcet et al. (2024).",
        f"Histogram of patch norms and share of outliers by layer. {told}.",
        figure,
        rows,
    )


def layers_exhibit(probes: Sequence[LayerProbe]) -> Exhibit:
    """Figure 2b: VOC mIoU of single layers, with (dashed) and without [CLS]; a panel a method, a line a checkpoint."""
    methods = list(dict.fromkeys(probe.method for probe in probes))
    figure = Figure(figsize=(4.2 * len(methods), 3.3), layout="constrained")
    panels = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    for axes, method in zip(panels, methods, strict=True):
        own = [probe for probe in probes if probe.method == method]
        for index, checkpoint in enumerate(dict.fromkeys(probe.checkpoint for probe in own)):
            for cls in (False, True):
                line = [p for p in own if p.checkpoint == checkpoint and p.cls == cls]
                if line:
                    style = _style(index) | {"linestyle": "--" if cls else "-"}
                    axes.plot([p.layer for p in line], [p.miou for p in line], label=_text(line[0].line), **style)
        _dress(axes, _text(method), y="VOC mIoU, %")
        _layer_axis(axes, 1 + max(probe.layer for probe in probes))
        axes.legend(frameon=False, fontsize=8)
    best = max(probes, key=lambda probe: probe.miou)
    return Exhibit(
        "layers",
        "Dense quality by layer",
        "Linear probe on one layer's patch features, alone and with [CLS] concatenated to every patch (paper's Figure "
        "2b); best validation mIoU of each probe.",
        f"mIoU by layer for {', '.join(methods)}; best {best.miou:.1f} in layer {best.layer}.",
        figure,
        [vars(probe) for probe in probes],
    )


def _label(name: str) -> str:
    """A long spec on several lines."""
    broken = name.replace("+", "+\n").replace(", ", ",\n").replace(":", ":\n") if len(name) > 14 else name
    return _text(broken)


def _text(name: str) -> str:
    """A name as it is: matplotlib would set what stands between two $ as a formula, and leave _x out of a legend."""
    shown = name.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
