"""Scenes are a function of (seed, index), their ground truth agrees with itself, and they can be learnt."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.ops import masks_to_boxes

from attn_plugins.data.backdrop import SKY
from attn_plugins.data.scenes import NUM_CLASSES, Scene, render, scenes
from attn_plugins.data.shapes import CLASSES

SIZES = st.sampled_from([(32, 32), (64, 64), (48, 160), (120, 80)])


def digest(scene: Scene) -> str:
    arrays = [value for value in asdict(scene).values() if isinstance(value, np.ndarray)]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def test_a_scene_does_not_depend_on_how_many_are_rendered() -> None:
    few = [digest(s) for s in scenes(7, 3, (64, 64))]
    many = [digest(s) for s in scenes(7, 6, (64, 64))]
    later = [digest(s) for s in scenes(7, 3, (64, 64), start=3)]
    assert many == few + later
    assert digest(render(7, 4, (64, 64))) == many[4]


def test_another_process_renders_the_same_bytes() -> None:
    code = (
        "import hashlib; from attn_plugins.data.scenes import render\n"
        "print(hashlib.sha256(render(5, 11, (64, 96)).image.tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(render(5, 11, (64, 96)).image.tobytes()).hexdigest()


def test_seeds_and_indices_give_different_scenes() -> None:
    assert len({digest(render(seed, index, (32, 32))) for seed in range(4) for index in range(8)}) == 32


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 10**6), size=SIZES, indoor=st.booleans())
def test_ground_truth_agrees_with_itself(index: int, size: tuple[int, int], indoor: bool) -> None:
    scene = render(1, index, size, indoor=indoor)
    assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
    for ids in (scene.mask, scene.instances, scene.stuff):
        assert ids.shape == size and ids.dtype == np.uint8
    assert ((scene.instances > 0) == (scene.mask > 0)).all()
    assert ((scene.instances > 0) == (scene.stuff == 0)).all()
    assert (SKY in scene.stuff) == (not indoor)

    numbers = torch.arange(1, len(scene.boxes) + 1)
    expected = masks_to_boxes(torch.from_numpy(scene.instances)[None] == numbers[:, None, None])
    boxes = torch.tensor([[b.xmin, b.ymin, b.xmax - 1, b.ymax - 1] for b in scene.boxes], dtype=torch.float32)
    torch.testing.assert_close(boxes, expected.float(), rtol=0, atol=0)
    for number, box in enumerate(scene.boxes, 1):
        assert set(scene.mask[scene.instances == number]) == {box.label}
    assert scene.label in {box.label for box in scene.boxes}


@settings(max_examples=40, deadline=None)
@example(index=2040, indoor=False, far=8.0)
@given(index=st.integers(0, 10**6), indoor=st.booleans(), far=st.sampled_from([8.0, 10.0, 80.0]))
def test_depth_is_metric_and_ordered(index: int, indoor: bool, far: float) -> None:
    scene = render(2, index, (64, 96), indoor=indoor, far=far)
    assert np.isfinite(scene.depth).all()
    assert scene.depth.min() > 0
    assert scene.depth.max() <= (min(far, 10.0) if indoor else far)
    middles = [np.median(scene.depth[scene.instances == i + 1]) for i in range(len(scene.boxes))]
    # Farthest first; surfaces bulge towards the camera by less than half a metre at these sizes and distances.
    assert all(far_one > near_one - 0.5 for far_one, near_one in pairwise(middles))


def test_the_main_class_can_be_asked_for() -> None:
    for label in range(1, NUM_CLASSES + 1):
        scene = render(0, label, (64, 64), label=label)
        assert scene.label == label
        assert label in scene.mask


def test_classes_are_pairwise_different_and_twenty() -> None:
    assert NUM_CLASSES == 20
    assert len({(c.outline, c.pattern) for c in CLASSES}) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (31, 64)}, r"size=\(31, 64\).*32"),
        ({"label": 21}, "label=21.*1 to 20"),
        ({"label": 0}, "label=0"),
        ({"far": 1.0}, "far=1.0"),
        ({"seed": -1}, "non-negative"),
    ],
)
def test_what_cannot_be_rendered_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(**{"seed": 0, "index": 0, **arguments})


def pixels(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour, saturation and position of 150 pixels a scene, and their classes."""
    rng = np.random.default_rng(first)
    features, classes = [], []
    for scene in scenes(9, count, (64, 64), start=first):
        at = rng.integers(0, 64, (150, 2))
        rgb = scene.image[at[:, 0], at[:, 1]] / 255
        features.append(np.concatenate([rgb, np.ptp(rgb, axis=1, keepdims=True), at / 64], axis=1))
        classes.append(scene.mask[at[:, 0], at[:, 1]])
    return np.concatenate(features), np.concatenate(classes)


@pytest.mark.slow
def test_pixels_tell_something_about_classes_and_shuffled_labels_nothing() -> None:
    sklearn_ensemble = pytest.importorskip("sklearn.ensemble")
    from sklearn.metrics import jaccard_score

    x, y = pixels(0, 150)
    x_val, y_val = pixels(10_000, 80)

    def miou(labels: np.ndarray) -> float:
        forest = sklearn_ensemble.RandomForestClassifier(40, min_samples_leaf=4, random_state=0).fit(x, labels)
        return float(jaccard_score(y_val, forest.predict(x_val), average="macro", zero_division=0))

    learnt, shuffled = miou(y), miou(np.random.default_rng(0).permutation(y))
    assert shuffled < 0.05
    assert learnt > shuffled + 0.03
    assert learnt < 0.5, "classes should not be readable from single pixels"
