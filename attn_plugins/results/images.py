"""``images.json``: what each image contributed, and differences between models with their uncertainty."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..files import read_json, write_text

__all__ = ["IMAGES_FILE", "Difference", "difference", "interval", "mcnemar", "read_images", "write_images"]

IMAGES_FILE = "images.json"
_DRAWS = 2000


@dataclass(frozen=True)
class Difference:
    """How much one model measures beyond another on the same images.

    Attributes:
        value: the difference of the two measures.
        low, high: 95 % interval of it by a paired bootstrap: images are drawn with replacement, the same for both.
        images: how many.
        gained, lost: where each image is right or wrong: images that the one model alone has right, and that the other
            alone has; None for other measures.
        p: two-sided, of McNemar's exact test on these two; None for other measures.
    """

    value: float
    low: float
    high: float
    images: int
    gained: int | None = None
    lost: int | None = None
    p: float | None = None


def write_images(folder: Path, iteration: int, images: Mapping[str, Any]) -> None:
    """Write ``folder/images.json``, whole or not at all.

    Args:
        folder: work dir of a probe.
        iteration: optimizer steps done; 0 for a test.
        images: {image's path: a number, or [intersections, unions] of each class}.
    """
    # Below the folder that they share: where that lies is another matter on another machine.
    shared = os.path.commonpath([os.path.dirname(path) for path in images])
    named = {os.path.relpath(path, shared) if shared else path: value for path, value in images.items()}
    write_text(folder / IMAGES_FILE, json.dumps({"iter": iteration, "images": named}) + "\n")


def read_images(file: Path) -> tuple[int, dict[str, Any]]:
    """(iteration, what each image contributed).

    Raises:
        ValueError: the file is missing or damaged; it is named.
    """
    contents = read_json(file)
    try:
        images = {str(path): _value(value) for path, value in contents["images"].items()}
        return int(contents["iter"]), images
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__} {error}") from error


def _value(value: Any) -> Any:
    if isinstance(value, list):
        intersect, union = ([float(count) for count in counts] for counts in value)
        if len(intersect) != len(union):
            raise ValueError("as many intersections as unions are needed")
        return intersect, union
    return float(value)


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference:
    """``ours`` minus ``theirs``: of mIoU in percent where images hold intersections and unions, else of the mean.

    The images are drawn by a fixed seed. They stand for other images like them; that other training runs would differ,
    too, is not in the interval.

    Args:
        ours: {image: contribution}, as ``read_images`` gives it.
        theirs: of another model, on the same images.

    Raises:
        ValueError: they are not of the same images, or of the same kind.
    """
    if ours.keys() != theirs.keys() or not ours:
        raise ValueError(
            f"the two are of {len(ours)} and {len(theirs)} images, {len(ours.keys() & theirs.keys())} the same"
        )
    names = sorted(ours)
    kinds = {type(value) for value in (*ours.values(), *theirs.values())}
    if len(kinds) > 1:
        raise ValueError("the two hold different measures")
    draws = _draws(len(names))
    values = _measure([ours[name] for name in names], draws) - _measure([theirs[name] for name in names], draws)
    found = Difference(*_ends(values), len(names))
    if any(value not in (0.0, 100.0) for of in (ours, theirs) for value in of.values()):
        return found  # no share of images that are right
    gained, lost = (sum(a[name] > b[name] for name in names) for a, b in ((ours, theirs), (theirs, ours)))
    return replace(found, gained=gained, lost=lost, p=mcnemar(gained, lost))


def interval(images: Mapping[str, Any]) -> tuple[float, float, float]:
    """(value, lower and upper end of its 95 % interval) of one model's measure, by a bootstrap over its images.

    Args:
        images: {image: contribution}, as ``read_images`` gives it.

    Raises:
        ValueError: there are none, or they hold different measures.
    """
    if len({type(value) for value in images.values()}) != 1:
        raise ValueError(f"{len(images)} images hold no one measure")
    return _ends(_measure(list(images.values()), _draws(len(images))))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test (1947): are images that one model alone gets right as many for each?

    Args:
        only_a: images that the first gets right and the second does not.
        only_b: the reverse.
    """
    discordant, tail, ways = only_a + only_b, 0, 1
    for k in range(min(only_a, only_b) + 1):
        tail += ways
        ways = ways * (discordant - k) // (k + 1)
    return min(1.0, float(Fraction(2 * tail, 2**discordant)))


def _draws(images: int) -> Any:
    """``[1 + R, N]``: how often each image is in a draw, each once in the first."""
    import torch

    draws = torch.ones(_DRAWS + 1, images, dtype=torch.float64)
    chosen = torch.randint(images, (_DRAWS, images), generator=torch.Generator().manual_seed(0))
    draws[1:] = torch.zeros_like(draws[1:]).scatter_add_(1, chosen, torch.ones_like(draws[1:]))
    return draws


def _ends(values: Any) -> tuple[float, float, float]:
    """(value, lower and upper end) of a measure ``[1 + R]`` of draws."""
    low, high = values[1:].quantile(values.new_tensor([0.025, 0.975])).tolist()
    return float(values[0]), low, high


def _measure(images: Sequence[Any], draws: Any) -> Any:
    """The measure of each draw ``[R]``, of how often each image is in it ``[R, N]``."""
    if isinstance(images[0], float):
        return draws @ draws.new_tensor(images) / draws.shape[1]
    intersect, union = (draws @ draws.new_tensor([image[part] for image in images]) for part in (0, 1))
    # A class that is in no image of a draw is no class of that draw.
    return 100 * (intersect / union).nanmean(1)
