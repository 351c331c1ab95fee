"""integration/adapt/measure.py: its mIoU is that of labels that features tell, and its table has every number."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

SCRIPT = Path(__file__).parents[2] / "integration" / "adapt" / "measure.py"


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(measure: Any) -> tuple[Tensor, Tensor]:
    """Features ``[B, N, C]`` that are the label of their patch, and these labels ``[B, H, W]``: upright stripes."""
    h, w = measure.HEIGHT // 14, measure.WIDTH // 14
    stripes = torch.arange(w) * 12 // w  # 0 to 10, and 11 where there is none
    labels = stripes.repeat_interleave(14).expand(4, 14 * h, 14 * w).to(torch.uint8)
    features = F.one_hot(stripes, 12).float().expand(4, h, w, 12).reshape(4, h * w, 12)
    return features + 0.01 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0)), labels


@pytest.mark.slow
def test_a_head_reads_what_features_tell(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "STEPS", 80)
    monkeypatch.setattr(measure, "BATCH", 4)
    monkeypatch.setattr(measure, "RATE", 5e-2)
    features, labels = told(measure)
    assert measure.miou((features, labels), (features, labels), 0) > 85
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    assert measure.miou((noise, labels), (noise, labels), 0) < 25


@pytest.mark.parametrize(
    ("name", "spec", "share"),
    [
        ("calibrated", "entmax15", None),
        ("calibrated:0.8", "entmax15", 0.8),
        ("calibrated:0.8,224@entmax:alpha=1.25", "entmax:alpha=1.25", 0.8),
    ],
)
def test_a_name_says_what_is_calibrated(
    measure: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, spec: str, share: float | None
) -> None:
    asked = []

    def calibrate(model: object, batches: list[Tensor], spec: str, share: float | None) -> Any:
        asked.append((spec, share))
        return SimpleNamespace(scales=SimpleNamespace(write=lambda path: None))

    monkeypatch.setattr(measure, "calibrate", calibrate)
    monkeypatch.setattr(measure, "read_photos", lambda *_: torch.zeros(1))
    measure.apply(None, name, SimpleNamespace(photos=tmp_path, work=tmp_path))
    assert asked == [(spec, share)]


def test_the_table_has_every_number(measure: Any) -> None:
    alike = {"patches": 0.9, "centred": 0.8, "cls": 0.7}
    row = {"name": "one", "photos": {**alike, "zeros": 0.5}, "streets": {**alike, "zeros": 0.6}, "mIoU": [1, 2, 3]}
    assert "| one | 0.900 · 0.800 · 0.700 | 50.0% | 60.0% | 2.0 ± 1.0 |" in measure.table([row])
