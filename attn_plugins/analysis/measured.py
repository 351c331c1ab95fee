"""Figures of measures: one panel, or one pair of heat maps, for each."""

from __future__ import annotations

from collections.abc import Sequence

from .compare import MEASURES as DRIFT
from .diffusion import BOXED_MEASURES, MEASURES
from .exhibit import Exhibit, Panel
from .findings import Findings, Settings
from .maps import REACH
from .measure import Definition
from .panels import Series, by_layer, dots, styles

__all__ = ["diffusion_exhibit", "discovery_exhibit", "drift_exhibit", "measures_exhibit", "reach_exhibit"]


def measures_exhibit(
    name: str, title: str, caption: str, found: Sequence[Findings], measures: Sequence[str]
) -> Exhibit:
    """A figure of some of the measures that were taken; those that no model has are left out.

    Args:
        name, title, caption: of the figure.
        found: the models.
        measures: names of the measures, in the order of the panels.
    """
    panels: list[Panel] = []
    rows = []
    told = []
    looks = dict(zip((one.subject.name for one in found), styles([one.subject for one in found]), strict=True))
    for measure in measures:
        own = [(one, one.measures[measure]) for one in found if measure in one.measures]
        if not own:
            continue
        what = own[0][1].definition
        scale = what.scale
        count = int(own[0][1].images.max())
        panels += by_layer(
            measure,
            what.title,
            what.unit,
            [Series.of(one.subject, measured) for one, measured in own],
            bounds=(what.bounds[0] * scale, what.bounds[1] * scale),
            looks=[looks[one.subject.name] for one, _ in own],
            note=_note(what, count),
        )
        rows += [
            {"model": one.subject.name, "epoch": one.subject.epoch} | row
            for one, measured in own
            for row in measured.table()
        ]
        values = ", ".join(f"{one.subject.name} {scale * m.mean[-1]:.3g}" for one, m in own)
        told.append(f"{what.title}: {values}")
    return Exhibit(name, title, caption, f"In the last layer: {'; '.join(told)}.", tuple(panels), rows)


def _note(what: Definition, images: int) -> str:
    source = "" if what.source == "here" else f" Source: {what.source}."
    return f"{what.text}{source} {images} images."


def diffusion_exhibit(found: Sequence[Findings]) -> Exhibit:
    """How far an image's tokens have become alike, and where its global meaning sits."""
    return measures_exhibit(
        "diffusion",
        "Semantic diffusion",
        "How alike an image's tokens have become, and whether the patches that are like [CLS] lie on the object. Lines "
        "are means over images, bands 95 % intervals by bootstrap over images.",
        found,
        [*BOXED_MEASURES, *MEASURES],
    )


def drift_exhibit(found: Sequence[Findings]) -> Exhibit:
    """How far each model's features are from the first's, layer by layer."""
    return measures_exhibit(
        "drift",
        "Drift of features",
        f"Against {found[0].subject.name}, on the same images. Lines are means over images, bands 95 % intervals by "
        "bootstrap over images.",
        found,  # the first has no drift, and a colour all the same
        list(DRIFT),
    )


def reach_exhibit(found: Sequence[Findings]) -> Exhibit:
    """Where attention goes: sinks and distances, layer by layer."""
    return measures_exhibit(
        "reach",
        "Where attention goes",
        "Lines are means over images, bands 95 % intervals by bootstrap over images.",
        found,
        list(REACH),
    )


def discovery_exhibit(found: Sequence[Findings], settings: Settings) -> Exhibit:
    """Object discovery and dense quality without training a head: one number a model."""
    panels, rows, told = [], [], []
    for name in dict.fromkeys(score.definition.name for one in found for score in one.scores):
        own = [(one.subject, score) for one in found for score in one.scores if score.definition.name == name]
        what = own[0][1].definition
        scale, chance = what.scale, own[0][1].chance
        panels.append(
            dots(
                name,
                what.title,
                what.unit,
                [(subject.name, scale * s.value, scale * s.low, scale * s.high) for subject, s in own],
                bounds=(scale * what.bounds[0], scale * what.bounds[1]),
                bound=None if chance is None else ("the whole picture", scale * chance),
                note=_note(what, own[0][1].images),
            )
        )
        rows += [{"model": subject.name, "epoch": subject.epoch} | score.row() for subject, score in own]
        told.append(f"{what.title}: " + ", ".join(f"{s.name} {scale * score.value:.3g}" for s, score in own))
    background, ignored = (", ".join(map(str, classes)) for classes in (settings.background, settings.ignored))
    return Exhibit(
        "discovery",
        "Objects and parts, without training",
        "What the last layer knows of objects without a head: bars are 95 % intervals by bootstrap over images; dotted "
        "is what the whole picture as box or mask would reach, which says how large the objects are. Masks: "
        f"background {background or 'none'}, left out {ignored or 'none'}.",
        f"{'; '.join(told)}.",
        tuple(panels),
        rows,
    )
