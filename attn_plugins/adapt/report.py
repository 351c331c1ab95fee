"""What a distillation has changed, on pictures that it never saw: by layer, as numbers and as a figure."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..analysis.images import MEAN, STD
from ..analysis.panels import COLOURS, dress, text
from ..analysis.pca import pca_rgb
from ..attention.counting import observed
from ..codebases.features import ViTFeatures
from ..files import write_text, written
from ..machine import machine
from ..patching import find_attention, patch
from ..spec import Spec
from ..text import columns
from .calibrate import CHUNK, Likeness
from .distilling import Distilled

__all__ = ["Measured", "Report"]

PICTURES = 4
SIDE = 224
"""Pixels of a drawn picture."""


@dataclass(frozen=True)
class Measured:
    """A model beside what it was with softmax.

    Attributes:
        name: of the model.
        sizes: its last layer, for each size of the pictures.
        patches, cls: ``[L]``, mean cosines of each layer's features, normed, at the first size.
        zeros: ``[L]``, share of each layer's attention weights that are exactly zero, at the first size.
    """

    name: str
    sizes: tuple[Likeness, ...]
    patches: tuple[float, ...]
    cls: tuple[float, ...]
    zeros: tuple[float, ...]


class Report:
    """Measures a model as it goes through ``attn_plugins.adapt.distil``.

    Args:
        model: as it is before; copied.
        images: ``[B, 3, H, W]`` of each size, normalised; never trained on.
        spec: what it will be patched with.
    """

    def __init__(self, model: nn.Module, images: Sequence[Tensor], spec: Spec) -> None:
        self.before, self.images = copy.deepcopy(model).eval(), images
        self.measured: list[Measured] = []
        shown = images[0][:PICTURES]
        self.maps = {"before": _map(self.before, shown)}
        self.measure("patched only", patch(copy.deepcopy(self.before), spec))

    def measure(self, name: str, model: nn.Module) -> None:
        """One more model."""
        found = [compare(self.before, model, batch) for batch in self.images]
        sizes = tuple(one[0] for one in found)
        _, patches, cls, zeros = found[0]
        self.measured.append(Measured(name, sizes, patches, cls, zeros))
        self.maps[name] = _map(model, self.images[0][:PICTURES])

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "size", "zeros", "patch cosine", "centred", "[CLS]")]
        for one in self.measured:
            for line in one.sizes:
                alike = (f"{value:.3f}" for value in (line.patches, line.centred, line.cls))
                rows.append((one.name, line.size, f"{line.zeros:.1%}", *alike))
        return "\n".join(["cosines to the features before, on pictures held out", *columns(rows, numbers=True)])

    def write(self, path: Path, distilled: Distilled, **more: Any) -> None:
        """As JSON: models, losses, recipe, time and machine."""
        device = str(next(self.before.parameters()).device)
        told = {
            **more,
            **asdict(distilled),
            "held_out": len(self.images[0]),
            "machine": machine(device),
            "measured": [asdict(one) for one in self.measured],
        }
        write_text(path, json.dumps(told, indent=2) + "\n")

    def draw(self, path: Path) -> None:
        """As a picture: cosine and zeros by layer, and the components of patch features of each model."""
        from matplotlib.figure import Figure

        names = list(self.maps)
        rows = len(self.images[0][:PICTURES])
        figure = Figure(figsize=(2 * (len(names) + 1), 3.4 + 2 * rows), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(3.4, 2 * rows))
        above, below = parts
        _lines(above.subplots(1, 2), self.measured)
        grid = below.subplots(rows, len(names) + 1, squeeze=False)
        coloured = pca_rgb([self.maps[name] for name in names], size=SIDE)
        scale, mean = torch.tensor(STD), torch.tensor(MEAN)
        pictures = (self.images[0][:PICTURES].cpu().permute(0, 2, 3, 1) * scale + mean).clamp(0, 1)
        for column, (name, shown) in enumerate(zip(("picture", *names), (pictures, *coloured), strict=True)):
            for row in range(rows):
                grid[row, column].imshow(shown[row].cpu().numpy())
                grid[row, column].set_axis_off()
            grid[0, column].set_title(text(name), fontsize=10)
        with written(path) as partial, partial.open("wb") as file:
            figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=110)


def compare(
    before: nn.Module, after: nn.Module, images: Tensor
) -> tuple[Likeness, tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Of the last layer; and of every layer the cosine of patches, of [CLS], and the share of zeros."""
    first, second = ViTFeatures(before), ViTFeatures(after)
    layers = range(first.depth)
    order = {id(site.module): index for index, site in enumerate(find_attention(after))}
    zeros: list[list[float]] = [[] for _ in order]

    def note(layer: Any, weights: Tensor | None = None, **told: Any) -> None:
        if weights is not None:
            zeros[order[id(layer)]].extend((weights == 0).flatten(1).double().mean(1).tolist())

    cosines: list[Tensor] = []
    for chunk in images.split(CHUNK):
        with torch.no_grad():
            wanted = first(chunk, layers)
            with observed(note):
                found = second(chunk, layers)
        cosines.append(torch.stack([_alike(*pair) for pair in zip(found, wanted, strict=True)], dim=1))
    patches, centred, cls = torch.cat(cosines).mean(0).T.tolist()
    shares = tuple(sum(some) / len(some) if some else 0.0 for some in zeros)
    size = "x".join(map(str, images.shape[-2:]))
    whole = Likeness(size, sum(shares) / len(shares), patches[-1], centred[-1], cls[-1])
    return whole, tuple(patches), tuple(cls), shares


def _alike(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
    """``[B, 3]``: cosine of patches, the same with each image's mean taken off, and of [CLS]."""
    own, theirs = (maps.double().flatten(2).transpose(1, 2) for maps in (found[0], wanted[0]))
    centred = F.cosine_similarity(own - own.mean(1, keepdim=True), theirs - theirs.mean(1, keepdim=True), dim=-1)
    cls = F.cosine_similarity(found[1].double(), wanted[1].double(), dim=-1)
    return torch.stack([F.cosine_similarity(own, theirs, dim=-1).mean(1), centred.mean(1), cls], dim=1).cpu()


def _map(model: nn.Module, images: Tensor) -> Tensor:
    """``[B, H, W, C]``, the last layer's patch features."""
    vit = ViTFeatures(model)
    with torch.no_grad():
        ((patches, _),) = vit(images, [vit.depth - 1])
    return patches.permute(0, 2, 3, 1).float().cpu()


def _lines(panels: Any, measured: Sequence[Measured]) -> None:
    depth = len(measured[0].patches)
    for index, one in enumerate(measured):
        colour = COLOURS[index]
        panels[0].plot(range(depth), one.patches, "-o", color=colour, markersize=4, label=text(one.name))
        panels[0].plot(range(depth), one.cls, "--s", color=colour, markersize=3)
        panels[1].plot(range(len(one.zeros)), [100 * share for share in one.zeros], "-o", color=colour, markersize=4)
    panels[0].plot([], [], "--s", color="#4d5661", markersize=3, label="the same, [CLS]")
    dress(panels[0], y="cosine to the features before", depth=depth)
    dress(panels[1], y="weights exactly zero, %", depth=depth)
    panels[0].legend(frameon=False, fontsize=9)
