"""Sinks, distances and maps: known attention, brute force, and the tokens of a model."""

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from attn_plugins.analysis.images import Batch
from attn_plugins.analysis.maps import REACH, MapsWatcher, ReachWatcher, patch_distances
from attn_plugins.analysis.recording import Answer, recorded
from attn_plugins.analysis.watch import Tokens, watch

GRID = (3, 4)


def reach(weights: Tensor) -> dict[str, float]:
    """Measures of one image's ``[H, N, N]``, [CLS] first."""
    watcher = ReachWatcher()
    watcher.begin(Batch(torch.zeros(1, 3, 48, 64), [[]]), GRID)
    watcher.weights(0, Answer(weights[None], weights[None], torch.softmax))
    return {name: float(one.values[0, 0]) for name, one in watcher.found().items()}


def test_distances_are_those_of_centres() -> None:
    distances = patch_distances(GRID)
    for a in range(12):
        for b in range(12):
            expected = math.hypot(a // 4 - b // 4, a % 4 - b % 4)
            assert float(distances[a, b]) == pytest.approx(expected)


def test_attention_that_is_known() -> None:
    n = 13
    itself, uniform, sink = torch.eye(n), torch.full((n, n), 1 / n), torch.zeros(n, n)
    sink[:, 0] = 1
    assert reach(itself[None]) == pytest.approx({"sink": 1 / n, "attention_distance": 0})
    mean = float(patch_distances(GRID).mean())
    assert reach(uniform[None]) == pytest.approx({"sink": 1 / n, "attention_distance": mean})
    assert reach(torch.stack([itself, uniform]))["attention_distance"] == pytest.approx(mean / 2)
    found = reach(sink[None])
    assert found["sink"] == 1 and math.isnan(found["attention_distance"]), "who looks at [CLS] alone reaches nowhere"
    # A step to the right, and from the right edge back by three.
    right = torch.zeros(n, n)
    for patch in range(12):
        right[1 + patch, 1 + (patch // 4) * 4 + (patch + 1) % 4] = 1
    assert reach(right[None])["attention_distance"] == pytest.approx((9 * 1 + 3 * 3) / 12)


def test_maps_are_those_of_the_last_layers_tokens_and_attention() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=32, num_heads=2, depth=2, num_classes=0
    ).eval()
    pixels = torch.randn(2, 3, 64, 64)
    outputs: list[Tensor] = []
    maps: dict[int, Tensor] = {}
    handle = model.blocks[1].register_forward_hook(lambda module, args, out: outputs.append(out))
    with torch.no_grad(), recorded(model, lambda layer, answer: maps.__setitem__(layer, answer.weights)):
        model(pixels)
    handle.remove()
    watcher, reached = MapsWatcher(1), ReachWatcher()
    watch(model, [Batch(pixels, [[], []])], [watcher, reached])
    found = watcher.found()
    assert found.query == (2, 2) and reached.found().keys() == REACH.keys()
    for image in range(2):
        patches, attention = outputs[0][image, 1:].numpy(), maps[1][image].mean(0).numpy()
        norms = np.linalg.norm(patches, axis=1)
        np.testing.assert_allclose(found.norms[image].ravel(), norms, rtol=1e-5)
        np.testing.assert_allclose(found.received[image].ravel(), attention.mean(0)[1:], rtol=1e-4)
        assert found.counts[image] == (norms > 3 * np.median(norms)).sum() == 0
        np.testing.assert_allclose(found.outliers[image].ravel(), attention[1 + norms.argmax(), 1:], rtol=1e-4)
        final = model.norm(outputs[0])[image, 1:].detach().numpy()
        np.testing.assert_allclose(
            found.similar[image].ravel(), cosine_similarity(final, final[10:11])[:, 0], atol=1e-5
        )


def test_outliers_are_told_by_their_norm() -> None:
    tokens = torch.ones(1, 17, 8)
    tokens[0, [3, 9]] = 40

    class Shown(Tokens):
        def __init__(self) -> None:
            self.layer = 0

        def under(self, norm: str) -> tuple[Tensor, Tensor]:
            return tokens[:, 1:], tokens[:, 0]

    watcher = MapsWatcher(0)
    watcher.begin(Batch(torch.zeros(1, 3, 64, 64), [[]]), (4, 4))
    weights = torch.rand(1, 2, 17, 17, generator=torch.Generator().manual_seed(0))
    watcher.weights(0, Answer(weights, weights, torch.softmax))
    watcher.tokens(Shown())
    found = watcher.found()
    assert found.counts.tolist() == [2]
    expected = weights[0].mean(0)[[3, 9]].mean(0)[1:]
    torch.testing.assert_close(found.outliers[0].flatten(), expected)
    with pytest.raises(ValueError, match="maps need a batch"):
        MapsWatcher(0).found()
