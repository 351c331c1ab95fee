"""The figures of what was found, but for those of ``measured`` and ``picture_figures``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator

from .exhibit import Exhibit, Panel
from .findings import Findings, Settings
from .images import Batch
from .layers import LayerProbe
from .norms import FACTOR
from .panels import GREY, RULE, SMALL, Series, by_layer, dress, heat_panels, legend, panel, style, text
from .pib import HITS
from .picture_figures import SIDE, packed
from .pictures import marked

__all__ = ["attention_exhibit", "layers_exhibit", "norms_exhibit", "pib_exhibit"]

NORM_SAID = {
    "none": "block outputs without any norm",
    "final": "the model's final norm on every layer's tokens",
    "own": "each layer's tokens under the norm they go through next: the next block's first norm, and behind the last "
    "block the final norm",
}


def pib_exhibit(found: Sequence[Findings], settings: Settings, shown: Sequence[tuple[int, Batch]] = ()) -> Exhibit:
    """Figure 2a: point-in-box, layers from the bottom up, a column a model or epoch, beside chance and border share.

    Args:
        found: the models.
        settings: what was asked for.
        shown: indices of images among those with a box, and the images.
    """
    results = [(f.subject, f.pib) for f in found if f.pib is not None]
    share = [Series.of(subject, one.share) for subject, one in results]
    border = [Series.of(subject, one.border) for subject, one in results]
    foot = ("chance", [100 * float(one.chance.mean()) for _, one in results])
    ring = ("chance", [100 * one.border_chance for _, one in results])
    panels = heat_panels("share", "Point-in-box, %", share, scale=(0, 100), foot=foot)
    panels += heat_panels("border", "Points on the border, %", border, scale=(0, 100), foot=ring, spread=False)
    for index, (subject, one) in enumerate(results if shown else ()):
        layer = settings.layer % one.points.shape[1]
        pictures = [
            marked(batch.rgb()[0], batch.boxes[0], one.point(image, layer, batch.pixels.shape[-1]), SIDE)
            for image, batch in shown
        ]
        hits = sum(bool(one.hits[image, layer]) for image, _ in shown)
        alt = f"{len(pictures)} images with their boxes and the point of layer {layer}; {hits} points count as hits."
        panels.append(Panel(f"points-{index + 1:02d}", f"{subject.name}, layer {layer}", alt, packed(pictures), True))
    rows = [{"model": s.name, "epoch": s.epoch} | row for s, one in results for row in one.table()]
    first = results[0][1]
    told = ", ".join(
        f"{s.name}: {100 * one.share.mean[-1]:.0f} % in the last layer (chance {100 * one.chance.mean():.0f} %)"
        for s, one in results
    )
    return Exhibit(
        "pib",
        "Point-in-box",
        f"Share of {first.images} images whose patch most similar to [CLS] lies on the object, per layer (paper's "
        f"Figure 2a). Norm before the cosine: {settings.norm} ({NORM_SAID[settings.norm]}). A hit: "
        f"{HITS[settings.hit]}. Boxes: {settings.rule}; {first.skipped} images without one that counts are left out. "
        f"Pictures: {settings.view}. Chance is the share of patches that would count, what a patch drawn at random "
        f"reaches; on the border it is {100 * first.border_chance:.0f} %. In brackets: 95 % intervals by bootstrap "
        "over images, Wilson's where all images agree.",
        f"Heat maps of point-in-box by layer and model. {told}.",
        tuple(panels),
        rows,
    )


def attention_exhibit(found: Sequence[Findings]) -> Exhibit:
    """Entropy, exact zeros, support and [CLS] mass by layer; lines are means over heads, bands their range."""
    results = [(f.subject, f.attention) for f in found if f.attention is not None]
    kinds = {
        "entropy": ("Entropy", "nats"),
        "entropy_p15": ("Entropy, 15th percentile of rows", "nats"),
        "zero_share": ("Weights that are exactly zero", "%"),
        "support": ("Support: keys with weight", ""),
        "cls_mass": ("[CLS] mass on patches", "%"),
    }
    panels: list[Panel] = []
    for name, (title, unit) in kinds.items():
        scale = 100 if unit == "%" else 1
        series = []
        for subject, stats in results:
            values = getattr(stats, name).double().numpy() * scale
            series.append(
                Series(subject.name, subject.spec, subject.epoch, values.mean(1), values.min(1), values.max(1))
            )
        bound = ("log n", max(float(a.bound.max()) for _, a in results)) if unit == "nats" else None
        bounds = (0.0, 100.0) if unit == "%" else (0.0, float("inf"))
        panels += by_layer(name, title, unit, series, spread="range over heads", bounds=bounds, bound=bound)
    rows = [{"model": s.name, "epoch": s.epoch} | row for s, a in results for row in a.table()]
    told = "; ".join(
        f"{s.name}: mean entropy {float(a.entropy.mean()):.2f}, {100 * float(a.zero_share.mean()):.0f} % exact zeros"
        for s, a in results
    )
    lost = "; ".join(f"{s.name} {100 * float(a.underflow.max()):.1f} %" for s, a in results)
    return Exhibit(
        "attention",
        "How dense attention is",
        f"Per layer: mean over heads (line) and the heads' range (band), over all queries of {found[0].images[0]} "
        "images. Entropy after Hyeon-Woo et al. (2023); log n is that of uniform attention. Exactly zero is what the "
        "normalizer gives nothing; weights that are too small for the model's numbers (softmax's below 1e-45) are none "
        f"of these and stand apart in the CSV as underflow, at most, in one head: {lost}.",
        f"Charts by layer. {told}.",
        tuple(panels),
        rows,
    )


def norms_exhibit(found: Sequence[Findings], settings: Settings) -> Exhibit:
    """Histogram of the last layer's token norms, and the shares of outliers by layer."""
    results = [(f.subject, f.norms) for f in found if f.norms is not None]
    panels: list[Panel] = []
    if len(results) <= 6:
        panels.append(_histogram(results))
    median = [_exact(s.name, s.spec, s.epoch, n.quantile(0.5), n.quantile(0.01), n.quantile(0.99)) for s, n in results]
    panels += by_layer("median", "Median norm", "L2 norm", median, spread="1st to 99th percentile", bounds=(0, np.inf))
    shares = {
        "relative": (f"Outliers: above {FACTOR:g} medians of their layer", [n.outlier_share() for _, n in results]),
        "absolute": (
            f"Outliers: norm above {settings.norm_threshold:g}",
            [n.above(settings.norm_threshold) for _, n in results],
        ),
    }
    for name, (title, values) in shares.items():
        series = [
            _exact(s.name, s.spec, s.epoch, 100 * v, 100 * v, 100 * v)
            for (s, _), v in zip(results, values, strict=True)
        ]
        drawn = by_layer(name, title, "%", series, bounds=(0, 100))
        panels += [one for one in drawn if "spread" not in one.name]
    rows = [{"model": s.name, "epoch": s.epoch} | row for s, n in results for row in n.table(settings.norm_threshold)]
    told = "; ".join(
        f"{s.name}: {100 * float(n.outlier_share()[-1]):.1f} % outliers in the last layer" for s, n in results
    )
    return Exhibit(
        "norms",
        "Norms of patch tokens",
        f"Block outputs before any norm, {found[0].images[0]} images. High-norm tokens are the artifacts of Darcet et "
        f"al. (2024), who count norms above 150 in DINOv2 ViT-g: an absolute threshold ({settings.norm_threshold:g} "
        f"here) means something for one model's scale; {FACTOR:g} medians of the layer compare models. "
        "Bands: 1st to 99th percentile.",
        f"Norms and shares of outliers by layer. {told}.",
        tuple(panels),
        rows,
    )


def _histogram(results: Sequence[Any]) -> Panel:
    figure, axes = panel("Patch norms in the last layer")
    for index, (subject, norms) in enumerate(results):
        look = style(index)
        counts = norms.counts[-1].double().view(-1, 20).sum(1)
        shares = (100 * counts / counts.sum()).numpy()
        axes.stairs(
            shares,
            norms.edges[::20].numpy(),
            color=look["color"],
            linestyle=look["linestyle"],
            linewidth=1.6,
            label=text(subject.name),
        )
    seen = [norms.quantile(share)[-1] for _, norms in results for share in (0.0001, 0.9999)]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(LogLocator(base=2, subs=(1.5,)))
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlim(float(min(seen)) / 1.5, float(max(seen)) * 1.5)
    dress(axes, "L2 norm", "% of tokens")
    axes.tick_params(which="minor", labelsize=SMALL, color=RULE, labelcolor=GREY)
    legend(figure, axes)
    names = ", ".join(subject.name for subject, _ in results)
    return Panel("histogram", "", f"Histogram of the last layer's patch norms of {names}.", figure)


def _exact(label: str, spec: str, epoch: int | None, value: Any, low: Any, high: Any) -> Series:
    return Series(label, spec, epoch, *(x.double().numpy() for x in (value, low, high)))


def layers_exhibit(probes: Sequence[LayerProbe]) -> Exhibit:
    """Figure 2b: VOC mIoU of single layers, alone and with [CLS]; for many checkpoints layer x epoch heat maps."""
    panels: list[Panel] = []
    alone = {cls: [one for one in probes if one.cls == cls] for cls in (False, True)}
    shown = [_line(probes, key) for key in dict.fromkeys((p.checkpoint, p.method, p.cls) for p in probes)]
    every = np.concatenate([series.value for series in shown])
    scale = (float(np.nanmin(every)), float(np.nanmax(every)))
    if len(shown) <= 6:
        panels += by_layer("miou", "VOC mIoU", "%", shown)
    else:
        for cls, own in alone.items():
            lines = [_line(own, key) for key in dict.fromkeys((p.checkpoint, p.method, p.cls) for p in own)]
            title = "VOC mIoU, %, with [CLS]" if cls else "VOC mIoU, %"
            panels += heat_panels("miou-cls" if cls else "miou", title, lines, scale=scale) if lines else []
        panels += _spreads(shown)
    best = max(probes, key=lambda probe: probe.miou)
    methods = ", ".join(dict.fromkeys(probe.method for probe in probes))
    return Exhibit(
        "layers",
        "Dense quality by layer",
        "Linear probe on one layer's patch features, alone and with [CLS] concatenated to every patch (paper's Figure "
        "2b); best validation mIoU of each probe. All panels of it have one scale. Bands and spreads: 95 % intervals "
        "by bootstrap over images of the last evaluation, around the best; none for probes that kept no images.",
        f"mIoU by layer for {methods}; best {best.miou:.1f} in layer {best.layer}.",
        tuple(panels),
        [vars(probe) for probe in probes],
    )


def _spreads(shown: Sequence[Series]) -> list[Panel]:
    """How wide the intervals are, where any is known."""
    wide = [Series(s.label, s.spec, s.epoch, s.high - s.low, s.low, s.high) for s in shown]
    if not any(np.isfinite(one.value).any() for one in wide):
        return []
    return heat_panels("miou-spread", "VOC mIoU, %: width of the 95 % interval", wide, spread=False)


def _line(probes: Sequence[LayerProbe], key: tuple[str, str, bool]) -> Series:
    """The line of one checkpoint, with or without [CLS]."""
    own = [p for p in probes if (p.checkpoint, p.method, p.cls) == key]
    values, low, high = np.full((3, 1 + max(probe.layer for probe in probes)), np.nan)
    for probe in own:
        values[probe.layer] = probe.miou
        low[probe.layer], high[probe.layer] = probe.miou - probe.below, probe.miou + probe.above
    first = own[0]
    group = first.method + (" + [CLS]" if first.cls else "")
    return Series(f"{first.method}, {first.line}", group, first.epoch, values, low, high)
