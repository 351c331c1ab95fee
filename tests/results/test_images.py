"""Differences over images: paired, reproducible, and equal to what is computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from attn_plugins.results import difference, mcnemar, read_images, write_images


def contributions(seed: int, shift: float = 0.0) -> dict[str, tuple[list[float], list[float]]]:
    rng = np.random.default_rng(seed)
    union = rng.integers(50, 100, (40, 3)).astype(float)
    rate = np.clip(np.random.default_rng(1).uniform(0.2, 0.6, (40, 3)) + shift, 0, 1)
    return {str(i): ((union[i] * rate[i]).tolist(), union[i].tolist()) for i in range(40)}


def miou(images: dict[str, tuple[list[float], list[float]]], names: list[str]) -> float:
    intersect, union = (np.sum([images[name][part] for name in names], axis=0) for part in (0, 1))
    return float(100 * np.nanmean(intersect / union))


def test_the_difference_is_that_of_the_two_means() -> None:
    ours, theirs = contributions(0, 0.1), contributions(0)
    found = difference(ours, theirs)
    names = list(ours)
    assert found.value == pytest.approx(miou(ours, names) - miou(theirs, names))
    assert found.low < found.value < found.high and found.images == 40
    assert difference(ours, theirs) == found


def test_the_interval_is_the_bootstraps() -> None:
    """Against numpy, image by image."""
    ours, theirs = contributions(0, 0.05), contributions(3)
    rng = np.random.default_rng(0)
    names = np.array(list(ours))
    draws = [list(rng.choice(names, len(names))) for _ in range(2000)]
    values = [miou(ours, draw) - miou(theirs, draw) for draw in draws]
    found = difference(ours, theirs)
    spread = np.std(values)
    assert found.low == pytest.approx(np.quantile(values, 0.025), abs=0.2 * spread)
    assert found.high == pytest.approx(np.quantile(values, 0.975), abs=0.2 * spread)


def test_pairing_takes_out_what_the_images_share() -> None:
    rng = np.random.default_rng(0)
    hard = {str(i): float(v) for i, v in enumerate(rng.normal(5, 3, 60))}
    better = {name: value - 0.1 + 0.01 * float(rng.normal()) for name, value in hard.items()}
    found = difference(better, hard)
    assert found.value == pytest.approx(-0.1, abs=0.01)
    assert found.low > -0.11 and found.high < -0.09


def test_a_class_that_no_image_shows_is_no_class() -> None:
    with_empty = {name: ([*i, 0.0], [*u, 0.0]) for name, (i, u) in contributions(0, 0.1).items()}
    without = {name: ([*i, 0.0], [*u, 0.0]) for name, (i, u) in contributions(0).items()}
    expected = difference(contributions(0, 0.1), contributions(0))
    assert difference(with_empty, without) == expected


@pytest.mark.parametrize("counts", [(0, 0), (3, 9), (20, 4), (7, 7), (0, 12), (400, 300), (6000, 5500)])
def test_mcnemar_is_the_binomial_test_of_the_discordant(counts: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected, rel=1e-9)


def test_accuracies_are_compared_by_mcnemars_test_too() -> None:
    ours = {str(i): 100.0 * (i < 70) for i in range(100)}
    theirs = {str(i): 100.0 * (5 <= i < 55) for i in range(100)}
    found = difference(ours, theirs)
    assert (found.value, found.gained, found.lost) == (20.0, 20, 0) and found.p == 2 * 0.5**20
    same = difference(ours, ours)
    assert (same.value, same.gained, same.lost, same.p) == (0.0, 0, 0, 1.0)


def test_no_test_of_right_and_wrong_where_images_are_neither() -> None:
    assert difference({"a": 100.0, "b": 40.0}, {"a": 0.0, "b": 100.0}).p is None
    assert difference(contributions(0, 0.1), contributions(0)).p is None


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="of 2 and 2 images, 1 the same"):
        difference({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0})


def test_what_is_written_is_read_wherever_the_images_lie(tmp_path: Path) -> None:
    write_images(tmp_path, 400, {"/data/x/a/1.png": [[1], [2]], "/data/x/b/2.png": [[0], [3]]})
    assert read_images(tmp_path / "images.json") == (400, {"a/1.png": ([1.0], [2.0]), "b/2.png": ([0.0], [3.0])})


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"iter": 1, "images": {"a": [[1], [2, 3]]}}), '{"iter": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(ValueError, match=r"images\.json"):
        read_images(tmp_path / "images.json")
