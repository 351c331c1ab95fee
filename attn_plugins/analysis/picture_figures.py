"""The figures that are pictures: components as colours, what [CLS] looks at, maps of single images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .exhibit import Exhibit, Panel
from .findings import Findings, Settings
from .norms import FACTOR
from .pca import pca_rgb
from .pictures import Pixels, grid, marked, overlaid, resized

__all__ = ["SIDE", "maps_exhibit", "overlay_exhibit", "packed", "pca_exhibit"]

SIDE = 224
"""Pixels of a picture on the page; files hold the same."""
COLUMNS = 4


def pca_exhibit(found: Sequence[Findings], images: NDArray[np.float32], settings: Settings) -> Exhibit:
    """Figure 1: the input ``[N, S, S, 3]``, and each model's first three components as colours."""
    features = [f.features for f in found if f.features is not None]
    pictures = pca_rgb(features, settings.basis, settings.foreground, size=images.shape[1])
    panels = [Panel("input", "input", f"{len(images)} photographs.", _strip(list(images)), wide=True)]
    rows = []
    for index, (one, picture) in enumerate(zip(found, pictures, strict=True)):
        alt = f"The same images as colours of {one.subject.name}'s principal components."
        panels.append(Panel(f"{index + 1:02d}", one.subject.name, alt, _strip(list(picture.numpy())), wide=True))
        rows += [
            {"model": one.subject.name, "image": n, "red": red, "green": green, "blue": blue}
            for n, (red, green, blue) in enumerate(picture.mean(dim=(1, 2)).tolist())
        ]
    fitted = "fitted on all images together" if settings.basis == "shared" else "fitted on each image"
    cut = "" if settings.foreground is None else f"; the first component above {settings.foreground:g} is foreground"
    return Exhibit(
        "pca",
        "Patch features as colours",
        "First three principal components of the last layer's patch features (final norm applied) as red, green and "
        f"blue; {fitted} ({len(images)}), upsampled bicubically from {features[0].shape[1]} x {features[0].shape[2]} "
        f"patches{cut}. Order and signs are brought into line with the first model, so that colours compare; signs of "
        "the first are fixed by the data alone. The CSV has each picture's mean colour.",
        f"{len(images)} images; the input and the principal components of {', '.join(f.subject.name for f in found)}.",
        tuple(panels),
        rows,
    )


def overlay_exhibit(found: Sequence[Findings], images: NDArray[np.float32], settings: Settings) -> Exhibit:
    """What [CLS] looks at in images ``[N, S, S, 3]``: the mean over heads and chosen heads, a row an image."""
    results = [(f.subject, f.overlay) for f in found if f.overlay is not None]
    heads = list(range(min(4, results[0][1].shape[1]))) if settings.heads is None else list(settings.heads)
    every = np.concatenate([maps.numpy().ravel() for _, maps in results])
    top = float(np.quantile(every, 0.99))
    names = ["mean of heads", *(f"head {head}" for head in heads)]
    columns = f"From left to right: input, {', '.join(names)}."
    rows: list[dict[str, Any]] = []
    panels = []
    for index, (subject, maps) in enumerate(results):
        pictures: list[Pixels] = []
        for image, own in zip(images, maps, strict=True):
            pictures.append(resized(image, SIDE // 2, smooth=True))
            shown = [own.mean(0), *(own[head] for head in heads)]
            pictures += [overlaid(image, weights.numpy(), top, SIDE // 2) for weights in shown]
        for name, weights in zip(names, [maps.mean(1), *(maps[:, head] for head in heads)], strict=True):
            zero = float((weights == 0).double().mean())
            rows.append({"model": subject.name, "map": name, "peak": float(weights.max()), "zero_share": zero})
        alt = f"For {len(images)} images: the input and attention maps of {subject.name}: {', '.join(names)}."
        drawn = grid(pictures, 2 + len(heads))
        panels.append(Panel(f"{index + 1:02d}", subject.name, alt, drawn, wide=True, note=columns))
    where = "the last layer" if settings.layer == -1 else f"layer {settings.layer}"
    return Exhibit(
        "overlay",
        "What [CLS] looks at",
        f"Attention of [CLS] over the patches in {where}, of {len(images)} images. All maps of all "
        f"models have one scale, from dark (0) to bright (a weight of {top:.2g} and above, the 99th percentile).",
        f"The input and attention maps of {', '.join(s.name for s, _ in results)}: mean of heads and heads {heads}.",
        tuple(panels),
        rows,
    )


def maps_exhibit(found: Sequence[Findings], images: NDArray[np.float32]) -> Exhibit:
    """Norms, what outliers attend to, attention received and similar patches, a row an image ``[N, S, S, 3]``."""
    results = [(f.subject, f.maps) for f in found if f.maps is not None]
    names = {
        "norms": "norm of each patch",
        "received": "attention that each patch receives",
        "outliers": "attention of the outliers",
        "similar": "cosine with the marked patch",
    }
    every = {name: np.concatenate([getattr(maps, name).numpy().ravel() for _, maps in results]) for name in names}
    tops = {name: float(np.quantile(values, 0.99)) for name, values in every.items()}
    # Norms are far from 0, where all of them would look alike.
    lows = dict.fromkeys(names, 0.0) | {"norms": float(np.quantile(every["norms"], 0.01))}
    columns = f"From left to right: input with the marked patch, {', '.join(names.values())}."
    panels, rows = [], []
    for index, (subject, maps) in enumerate(results):
        side = images.shape[1]
        point = tuple((place + 0.5) * side / maps.norms.shape[1] for place in reversed(maps.query))
        pictures: list[Pixels] = []
        for number, image in enumerate(images):
            pictures.append(marked(image, [], (point[0], point[1]), SIDE // 2))
            pictures += [
                overlaid(image, getattr(maps, name)[number].numpy(), top, SIDE // 2, lows[name])
                for name, top in tops.items()
            ]
            rows.append(
                {"model": subject.name, "image": number, "outliers": int(maps.counts[number])}
                | {f"{name}_max": float(getattr(maps, name)[number].max()) for name in names}
            )
        told = ", ".join(str(int(count)) for count in maps.counts)
        alt = f"For {len(images)} images: the input and maps of {subject.name}; outliers: {told}."
        drawn = grid(pictures, 1 + len(names))
        panels.append(Panel(f"{index + 1:02d}", subject.name, alt, drawn, wide=True, note=columns))
    scales = ", ".join(f"{names[name]} {top:.2g}" for name, top in tops.items())
    return Exhibit(
        "maps",
        "Norms, outliers and similar patches",
        f"The last layer's block output, before any norm, of {len(images)} images; cosines are under the final norm. "
        f"Outliers have a norm above {FACTOR:g} medians of their image; where there is none, the patch with the "
        "largest norm stands in, and the CSV counts them. One scale for all models, from dark (0 and below; for norms "
        f"the 1st percentile, {lows['norms']:.2g}) to bright (the 99th percentile and above: {scales}).",
        f"The input and four maps of {', '.join(subject.name for subject, _ in results)}.",
        tuple(panels),
        rows,
    )


def _strip(pictures: Sequence[NDArray[np.floating]]) -> Pixels:
    return packed([resized(picture, SIDE, smooth=True) for picture in pictures])


def packed(pictures: Sequence[Pixels]) -> Pixels:
    """Pictures in rows of four, which a phone has room for."""
    return grid(pictures, COLUMNS)
