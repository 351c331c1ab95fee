"""Drift against known transformations and brute force; what changed, against the tests by hand."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

import attn_plugins
from attn_plugins.analysis import compare
from attn_plugins.analysis.compare import Change, DriftWatcher, changes, changes_table, cka
from attn_plugins.analysis.findings import Findings
from attn_plugins.analysis.images import Batch
from attn_plugins.analysis.measure import Definition, Measured, Score
from attn_plugins.analysis.measured import drift_exhibit
from attn_plugins.analysis.panels import style
from attn_plugins.analysis.pib import PiB
from attn_plugins.analysis.subjects import Subject
from attn_plugins.analysis.watch import watch

VALUE = Definition("value", "A value", "", "One.", "here")


def test_cka_of_features_that_are_known() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 50, 16, generator=g)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=g))[0]
    torch.testing.assert_close(cka(x, 3 * x @ rotation + 5), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)
    many = torch.randn(200, 20, 64, generator=g), torch.randn(200, 20, 64, generator=g)
    assert abs(float(cka(*many).mean())) < 0.02, "unrelated features have none, also with more channels than patches"
    with pytest.raises(ValueError, match="four patches"):
        cka(x[:, :3], x[:, :3])


def test_cka_is_its_definition_over_quadruples() -> None:
    """Unbiased HSIC is the mean of K_ij (L_ij + L_kl - 2 L_ik) over distinct i, j, k, l (Gretton et al. 2005)."""
    g = np.random.default_rng(0)
    x, y = g.normal(size=(7, 3)), g.normal(size=(7, 4))
    y[:, 0] += x[:, 0]
    k, other = x @ x.T, y @ y.T

    def hsic(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        n = range(len(a))
        terms = [
            a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q])
            for i in n
            for j in n
            for q in n
            for r in n
            if len({i, j, q, r}) == 4
        ]
        out: float = np.mean(terms)
        return out

    expected = hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))
    assert cka(torch.from_numpy(x)[None], torch.from_numpy(y)[None]).item() == pytest.approx(expected)


def tiny(depth: int = 2, width: int = 32, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=width, num_heads=2, depth=depth, num_classes=0
    ).eval()


def test_drift_of_a_model_from_itself_and_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "IMAGES", 3)
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batches = [Batch(pixels[part], [[]] * 2) for part in (slice(2), slice(2, 4))]
    first = DriftWatcher()
    watch(tiny(), batches, [first])

    def drift(model: nn.Module) -> dict[str, Measured]:
        watcher = DriftWatcher(first)
        watch(model, batches, [watcher])
        return watcher.found()

    for measured in drift(tiny()).values():
        assert measured.values.shape == (3, 2)
        np.testing.assert_allclose(measured.values, 1, atol=1e-3)  # half precision
    other = attn_plugins.patch(tiny(), "sparsemax")
    for block in other.blocks:
        block.attn.qkv.weight.data *= 20
    got = []
    handle = other.blocks[1].register_forward_hook(lambda module, args, out: got.append(out[:, 1:]))
    found = drift(other)
    handle.remove()
    expected = torch.nn.functional.cosine_similarity(torch.cat(first.kept[1]).float(), torch.cat(got)[:3], dim=-1)
    np.testing.assert_allclose(found["drift_cosine"].values[:, 1], expected.mean(1), atol=1e-5)
    assert found["drift_cosine"].mean[1] < 0.999
    wider = drift(tiny(width=64))
    assert wider.keys() == {"drift_cka"}
    deeper = drift(tiny(depth=3))
    assert deeper["drift_cka"].values.shape == (3, 2), "layers that both have"


def test_changes_are_paired_and_binary_ones_are_mcnemars() -> None:
    g = np.random.default_rng(0)
    before = g.normal(size=(40, 3))
    after = before + 0.2
    after[5] = np.nan
    hits = g.random((40, 3)) > 0.5
    better = hits | (g.random((40, 3)) > 0.7)

    def findings(name: str, values: NDArray[np.float64], hit: NDArray[np.bool_]) -> Findings:
        pib = PiB("final", "centre", np.zeros(hit.shape, np.int64), hit, np.full(40, 0.5), (4, 4), np.arange(40))
        scores = [Score.of(Definition("corloc", "CorLoc", "%", "", "here", (0, 1)), hit[:, 0].astype(float))]
        measures = {"value": Measured(VALUE, values)}
        return Findings(Subject.of(torch.nn.Identity(), name), pib=pib, measures=measures, scores=scores)

    found = [findings("softmax", before, hits), findings("entmax15", after, better)]
    made = {one.definition.name: one for one in changes(found)}
    assert made.keys() == {"value", "pib", "border", "corloc"}
    value = made["value"]
    assert value.images == 39 and value.difference == pytest.approx(0.2) and value.test == "bootstrap"
    assert value.before == pytest.approx(np.delete(before[:, -1], 5).mean()) and value.p < 0.01
    gained = int((better[:, -1] & ~hits[:, -1]).sum())
    assert made["pib"].test == "McNemar"
    assert made["pib"].p == pytest.approx(stats.binomtest(gained, gained).pvalue)
    assert made["border"].difference == 0 and made["border"].p == 1
    table = changes_table(found, list(made.values()))
    assert len(table.rows) == 4 and "softmax" in table.head and "not corrected" in table.note
    assert any(row[:2] == ("A value", "entmax15") for row in table.rows)


def test_images_that_one_model_lacks_are_left_out() -> None:
    change = Change(VALUE, "x", np.array([1.0, np.nan, 3.0]), np.array([2.0, 5.0, np.nan]))
    assert (change.images, change.before, change.after) == (1, 1.0, 2.0)


def test_a_model_has_the_colour_in_the_drift_that_it_has_in_other_figures() -> None:
    drifted = {"drift_cosine": Measured(compare.MEASURES["drift_cosine"], np.full((4, 3), 0.5))}
    subjects = [Subject(name, nn.Identity, name) for name in ("softmax", "entmax15", "sparsemax")]
    found = [Findings(subject, measures=drifted if number else {}) for number, subject in enumerate(subjects)]
    (panel,) = drift_exhibit(found).panels
    lines = panel.drawing.axes[0].lines
    assert [(line.get_label(), line.get_color()) for line in lines] == [
        ("entmax15", style(1)["color"]),
        ("sparsemax", style(2)["color"]),
    ]
