"""Between models: how far features drift apart, and what a plugin changed, tested on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..results import mcnemar
from .images import Batch
from .measure import Definition, Floats, Measured, paired
from .page import Section
from .watch import Tokens, Watcher

if TYPE_CHECKING:
    from .findings import Findings

__all__ = ["Change", "DriftWatcher", "changes", "changes_table", "cka"]

IMAGES = 16
"""Images whose tokens of the first model are held, in half precision, to compare the others with."""

MEASURES = {
    one.name: one
    for one in (
        Definition(
            "drift_cosine",
            "Cosine to the first model's patches",
            "",
            "Mean over patches of the cosine similarity of the same patch in both models, before any norm.",
            "here",
            (-1, 1),
        ),
        Definition(
            "drift_cka",
            "CKA with the first model's patches",
            "",
            "Linear CKA of the image's patches in both models, before any norm, with the unbiased estimate of HSIC: 1 "
            "for features that differ by a rotation and a scale, 0 on average for unrelated ones.",
            "Kornblith et al. 2019; HSIC: Song et al. 2012",
        ),
    )
}


def cka(x: Tensor, y: Tensor) -> Tensor:
    """``[B]``: linear CKA of ``x: [B, P, C]`` and ``y: [B, P, D]`` over P, by the unbiased HSIC of Song et al. 2012.

    Raises:
        ValueError: fewer than four patches.
    """
    if x.shape[1] < 4:
        raise ValueError(f"CKA needs at least four patches, not {x.shape[1]}")
    one, other = (t.double() @ t.double().mT for t in (x, y))
    for gram in (one, other):
        gram.diagonal(dim1=1, dim2=2).zero_()
    return _hsic(one, other) / (_hsic(one, one) * _hsic(other, other)).sqrt()


def _hsic(a: Tensor, b: Tensor) -> Tensor:
    """``[B]``, of symmetric ``a, b: [B, P, P]`` with zeros on the diagonal."""
    n = a.shape[1]
    rows, columns = a.sum(1), b.sum(1)
    both = (a * b).sum((1, 2))
    means = rows.sum(1) * columns.sum(1) / ((n - 1) * (n - 2))
    return (both + means - 2 / (n - 2) * (rows * columns).sum(1)) / (n * (n - 3))


class DriftWatcher(Watcher):
    """Keeps the patches of the first ``IMAGES`` images, or compares another model's with them.

    Args:
        reference: that of the first model; None for the first itself.
    """

    def __init__(self, reference: DriftWatcher | None = None) -> None:
        self.reference = reference
        self.kept: dict[int, list[Tensor]] = {}
        self._values: dict[str, dict[int, list[Tensor]]] = {name: {} for name in MEASURES}
        self._start = self._count = 0

    def begin(self, batch: Batch, grid: tuple[int, int]) -> None:
        self._start += self._count
        self._count = len(batch.pixels)

    def tokens(self, tokens: Tokens) -> None:
        wanted = min(self._count, IMAGES - self._start)
        if wanted <= 0:
            return
        patches = tokens.under("none")[0][:wanted]
        if self.reference is None:
            self.kept.setdefault(tokens.layer, []).append(patches.cpu().half())
            return
        before = self.reference.kept.get(tokens.layer)
        if before is None:
            return
        own = torch.cat(before)[self._start : self._start + wanted].to(patches.device).float()
        if own.shape[1] != patches.shape[1]:
            return  # other patches: nothing to compare
        if own.shape == patches.shape:
            cosine = F.cosine_similarity(own, patches, dim=-1).mean(1)
            self._values["drift_cosine"].setdefault(tokens.layer, []).append(cosine.cpu())
        self._values["drift_cka"].setdefault(tokens.layer, []).append(cka(own, patches).cpu())

    def found(self) -> dict[str, Measured]:
        """Cosine and CKA by layer; without the cosine for another width, without both for another grid."""
        return {
            name: Measured(
                MEASURES[name],
                torch.stack([torch.cat(layers[layer]).double() for layer in sorted(layers)], dim=1).numpy(),
            )
            for name, layers in self._values.items()
            if layers
        }


class Change:
    """How one measure of the last layer differs between the first model and another, on the same images.

    Attributes:
        definition: the measure.
        model: the other model's name.
        before, after: the two means over images that both have.
        difference, low, high: their difference and its 95 % interval.
        p: two-sided, of the paired bootstrap, or of McNemar's exact test where each image is right or wrong.
        test: which of the two.
        images: images that both have.
    """

    def __init__(self, definition: Definition, model: str, before: Floats, after: Floats) -> None:
        held = np.isfinite(before) & np.isfinite(after)
        before, after = before[held], after[held]
        self.definition, self.model, self.images = definition, model, len(before)
        self.before, self.after = float(before.mean()), float(after.mean())
        self.difference, self.low, self.high, self.p = (float(x) for x in paired(before, after))
        self.test = "bootstrap"
        if np.isin(np.concatenate([before, after]), (0.0, 1.0)).all():
            self.test = "McNemar"
            self.p = mcnemar(int((before > after).sum()), int((after > before).sum()))

    def row(self) -> dict[str, object]:
        """As a row of a table."""
        return {"measure": self.definition.name, "model": self.model} | {
            name: getattr(self, name)
            for name in ("before", "after", "difference", "low", "high", "p", "test", "images")
        }


def changes(found: Sequence[Findings]) -> list[Change]:
    """Every measure that the first model and another have on the same images, of the last layer."""
    before, *others = found
    made = []
    for name, (definition, values) in _last(before).items():
        for other in others:
            own = _last(other).get(name)
            if own is not None and len(own[1]) == len(values) and (np.isfinite(values) & np.isfinite(own[1])).any():
                made.append(Change(definition, other.subject.name, values, own[1]))
    return made


def _last(found: Findings) -> dict[str, tuple[Definition, Floats]]:
    """``[N]`` of each measure that is one number an image."""
    measured = [found.pib.share, found.pib.border] if found.pib is not None else []
    measured += [one for one in found.measures.values() if one.definition.name not in MEASURES]
    values = {one.definition.name: (one.definition, one.values[:, -1]) for one in measured}
    return values | {
        one.definition.name: (one.definition, one.values) for one in found.scores if one.values is not None
    }


def changes_table(found: Sequence[Findings], made: Sequence[Change]) -> Section:
    """What changed against the first model, as a table of the report."""
    name = found[0].subject.name
    rows = []
    for one in made:
        scale, unit = one.definition.scale, f", {one.definition.unit}" if one.definition.unit else ""
        before, after, difference, low, high = (
            f"{scale * x:.3g}" for x in (one.before, one.after, one.difference, one.low, one.high)
        )
        p = "< 0.001" if one.p < 0.001 else f"{one.p:.3f}"
        rows.append(
            (one.definition.title + unit, one.model, before, after, difference, f"{low} to {high}", p, one.test)
        )
    head = ("measure", "model", f"{name}", "this model", "difference", "95 % interval", "p", "test")
    return Section(
        "What the plugins changed",
        f"Measures of the last layer, against {name}, image by image on the same images. Intervals by bootstrap over "
        "images; p two-sided and not corrected for the number of rows.",
        head,
        tuple(rows),
    )
