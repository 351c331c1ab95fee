"""The demo's own head and score, beside scikit-learn's."""

from __future__ import annotations

import pytest
import torch

from attn_plugins.demo.linear import fit, score


def test_miou_is_scikit_learn_s_over_the_classes_that_are_shown() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="pip install scikit-learn")
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(5, (6, 40), generator=generator)  # of seven classes, two are never shown
    found = torch.where(torch.rand(6, 40, generator=generator) < 0.6, truth, torch.randint(6, (6, 40)))
    expected = metrics.jaccard_score(truth.flatten(), found.flatten(), labels=range(5), average="macro")
    got = score(found, truth, 7)
    assert got.miou == pytest.approx(100 * expected)
    assert got.low < got.miou < got.high
    assert score(truth, truth, 7).low == score(truth, truth, 7).high == 100


def test_more_images_make_the_interval_narrower() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (160, 50), generator=generator)
    found = torch.where(torch.rand(160, 50, generator=generator) < 0.5, truth, (truth + 1) % 3)
    many, few = score(found, truth, 3), score(found[:10], truth[:10], 3)
    assert many.high - many.low < (few.high - few.low) / 2


@pytest.mark.slow
def test_a_linear_head_finds_what_is_linear_and_the_same_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 64, 16, generator=generator) * torch.logspace(-3, 3, 16)
    labels = (features / torch.logspace(-3, 3, 16))[..., :3].argmax(-1)
    found = fit(features[:6], labels[:6], 3)(features[6:])
    assert (found == labels[6:]).float().mean() > 0.85
    assert torch.equal(found, fit(features[:6], labels[:6], 3)(features[6:]))
