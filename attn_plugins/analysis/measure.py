"""A measure is one number for every image and layer; what is said of it is its mean and a bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE",
    "Definition",
    "Floats",
    "Measured",
    "Score",
    "bootstrap",
    "paired",
    "percentiles",
    "resampled",
    "wilson",
]

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
DRAWS = 2000
_AT_ONCE = 50
"""Draws held in memory at a time: a matrix of 50 x images."""


@dataclass(frozen=True)
class Definition:
    """What a measure is.

    Attributes:
        name: its column in tables.
        title: its heading in figures.
        unit: "%" where values are shares, shown as percent; else the unit, or nothing.
        text: how it is computed, a sentence.
        source: who proposed it, or "here".
        bounds: values that it can have.
    """

    name: str
    title: str
    unit: str
    text: str
    source: str
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def scale(self) -> float:
        """What values are multiplied with to be shown."""
        return 100.0 if self.unit == "%" else 1.0


@dataclass(frozen=True)
class Measured:
    """A measure of one model.

    Attributes:
        definition: what it is.
        values: ``[N, L]`` for images and layers; NaN where an image does not have it (no object, no outlier).
    """

    definition: Definition
    values: Floats

    @property
    def mean(self) -> Floats:
        """``[L]``, over the images that have it; NaN where none has."""
        return _mean(self.values)

    @property
    def spread(self) -> Floats:
        """``[L]``: standard deviation over images."""
        centred = (self.values - self.mean) ** 2
        return np.sqrt(_mean(centred))

    @property
    def images(self) -> NDArray[np.int64]:
        """``[L]``: images that have it."""
        return np.asarray(np.isfinite(self.values).sum(0), np.int64)

    def interval(self) -> tuple[Floats, Floats]:
        """Lower and upper end ``[L]`` of the 95 % interval of the mean.

        The percentile bootstrap over images; a share that is 0 or 1 in every image, of which resampling shows no
        doubt, has Wilson's interval.
        """
        low, high = bootstrap(self.values)
        if self.definition.bounds == (0, 1):
            for layer, (share, count) in enumerate(zip(self.mean, self.images, strict=True)):
                if count and share in (0.0, 1.0):
                    low[layer], high[layer] = wilson(round(share * count), int(count))
        return low, high

    def table(self) -> list[dict[str, Any]]:
        """One row a layer."""
        low, high = self.interval()
        columns = {"value": self.mean, "low": low, "high": high, "sd": self.spread}
        return [
            {"measure": self.definition.name, "layer": layer, "images": int(self.images[layer])}
            | {name: float(values[layer]) for name, values in columns.items()}
            for layer in range(self.values.shape[1])
        ]


@dataclass(frozen=True)
class Score:
    """A measure of a whole model: one number, with its interval.

    Attributes:
        definition: what it is.
        value, low, high: the number and its 95 % interval by bootstrap over images.
        images: images that it is over.
        values: ``[N]``, image by image, where it is their mean; None where it is made of all of them together.
        chance: what the same measure gives an answer that looks at no image; None where none is known.
    """

    definition: Definition
    value: float
    low: float
    high: float
    images: int
    values: Floats | None = None
    chance: float | None = None

    @classmethod
    def of(cls, definition: Definition, values: Floats, blind: Floats | None = None) -> Score:
        """The mean of one number an image, ``values: [N]``; ``blind: [N]`` are those of an answer without looking."""
        measured = Measured(definition, values[:, None])
        (low,), (high,) = measured.interval()
        chance = None if blind is None else float(np.nanmean(blind))
        count = int(measured.images[0])
        return cls(definition, float(measured.mean[0]), float(low), float(high), count, values, chance)

    def row(self) -> dict[str, Any]:
        """As a row of a table."""
        told = {"measure": self.definition.name, "value": self.value, "low": self.low, "high": self.high}
        return told | {"images": self.images, "chance": self.chance}


def bootstrap(
    values: Floats, confidence: float = CONFIDENCE, draws: int = DRAWS, seed: int = 0
) -> tuple[Floats, Floats]:
    """Percentile bootstrap interval of the mean over images (Efron 1979), the same at every call.

    Args:
        values: ``[N, ...]`` for N images; NaN are left out of means.
        confidence: of the interval.
        draws: resamplings.
        seed: of the generator.

    Returns:
        Lower and upper end, ``[...]``; NaN where no value is finite.

    Raises:
        ValueError: there are no images.
    """
    means = resampled(len(values), lambda weights: _means(weights, values), draws, seed)
    return percentiles(means, confidence)


def resampled(count: int, statistic: Callable[[Floats], Floats], draws: int = DRAWS, seed: int = 0) -> Floats:
    """``[draws, ...]``: a statistic of resamplings of ``count`` images.

    Args:
        count: of images.
        statistic: given how often each image was drawn, ``[M, count]`` for M resamplings, their values ``[M, ...]``.
        draws: resamplings.
        seed: of the generator.

    Raises:
        ValueError: there are no images.
    """
    if count < 1:
        raise ValueError("no images: an interval needs at least one")
    generator = np.random.default_rng(seed)
    sizes = [min(_AT_ONCE, draws - start) for start in range(0, draws, _AT_ONCE)]
    equal = np.full(count, 1 / count)
    return np.concatenate([statistic(generator.multinomial(count, equal, size).astype(np.float64)) for size in sizes])


def percentiles(found: Floats, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Lower and upper end ``[...]`` of the middle share of ``found: [draws, ...]``; NaN where no value is finite."""
    columns = found.reshape(len(found), -1)
    ends = np.full((2, columns.shape[1]), np.nan)
    some = np.isfinite(columns).any(0)
    if some.any():
        ends[:, some] = np.nanquantile(columns[:, some], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    low, high = ends.reshape(2, *found.shape[1:])
    return low, high


def paired(a: Floats, b: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """How two models differ on the same images, by the bootstrap over images.

    Args:
        a, b: ``[N, ...]`` for the same N images in order; images that lack one of the two are left out.

    Returns:
        Mean of b - a, lower and upper end of its interval, and the two-sided p: twice the smaller share of
        resamplings that lie on one side of zero, one counted on each side beforehand (Davison and Hinkley 1997, 4.2),
        each ``[...]``.

    Raises:
        ValueError: the shapes differ, or there are no images.
    """
    if a.shape != b.shape:
        raise ValueError(f"paired values are of the same images and layers, not {a.shape} and {b.shape}")
    difference = b - a
    drawn = resampled(len(difference), lambda weights: _means(weights, difference))
    low, high = percentiles(drawn)
    below, above = ((1 + side.sum(0)) / (1 + len(drawn)) for side in (drawn <= 0, drawn >= 0))
    p = np.where(np.isfinite(low), np.minimum(1.0, 2 * np.minimum(below, above)), np.nan)
    return _mean(difference), low, high, p


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927): never outside [0, 1], right also at 0 and 1.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials is no proportion")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def _means(weights: Floats, values: Floats) -> Floats:
    """``[M, ...]``: means of ``values: [N, ...]`` weighted with ``weights: [M, N]``."""
    flat = values.reshape(len(values), -1)
    held = np.isfinite(flat)
    with np.errstate(invalid="ignore"):
        means = weights @ np.where(held, flat, 0.0) / (weights @ held)
    return means.reshape(len(weights), *values.shape[1:])


def _mean(values: Floats) -> Floats:
    mean: Floats = _means(np.ones((1, len(values))), values)[0]
    return mean
