"""The picture of a training run holds what the monitor wrote, and nothing else."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from helpers.tiny_vit import TinyViT

pytest.importorskip("matplotlib", reason="pip install 'attn_plugins[analysis]'")

from matplotlib.text import Text

import attn_plugins
from attn_plugins.analysis.monitor import monitor_exhibit
from attn_plugins.analysis.panels import WIDTH
from attn_plugins.cli import main
from attn_plugins.training import Observation, read_run
from attn_plugins.training.rows import METRICS, LayerRows


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["entmax_alpha", "softmax"])
def test_the_command_draws_every_observation_layer_and_head(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = attn_plugins.patch(TinyViT(depth=3), spec)
    monitor = attn_plugins.Monitor(network, tmp_path / "run.jsonl", every=2)
    for _ in range(3):
        network(torch.randn(2, 3, 16, 16))
        monitor.step()
    assert main(["analyze", "monitor", str(tmp_path / "run.jsonl"), "--out", str(tmp_path / "out")]) == 0
    assert "2 observations from step 0 to 2" in capsys.readouterr().out
    shown = [*METRICS, "alpha", "zero_share-heads"]
    files = {f"monitor-{name}.{form}" for name in shown for form in ("png", "svg")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"monitor.csv"} | files
    with (tmp_path / "out" / "monitor.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = read_run(tmp_path / "run.jsonl")[-1]
    assert len(rows) == 2 * 3 * 2
    assert float(rows[-1]["entropy"]) == last.layers[2].entropy[1]
    assert float(rows[-1]["alpha"]) == pytest.approx(1.0 if spec == "softmax" else 1.5)


@pytest.mark.slow
def test_panels_of_a_deep_model_are_a_phone_wide_and_can_be_read() -> None:
    """No text below 9 points in a figure as wide as a phone, and none outside it: 40 layers of 24 heads."""
    run = [
        Observation(step, "entmax15", tuple(_rows(f"blocks.{depth}.attn", 24) for depth in range(40)))
        for step in range(0, 100_000, 25_000)
    ]
    exhibit = monitor_exhibit(run)
    assert [panel.name for panel in exhibit.panels] == [*METRICS, "zero_share-heads"]
    for panel in exhibit.panels:
        figure = panel.drawing
        figure.draw_without_rendering()
        assert figure.get_figwidth() == WIDTH and len(panel.alt) > 40 and not panel.wide
        for text in figure.findobj(Text):
            box = text.get_window_extent()
            if text.get_visible() and text.get_text() and box.width:
                assert text.get_fontsize() >= 9, text
        tight = figure.get_tightbbox()
        assert tight.x0 >= 0 and tight.x1 <= WIDTH and tight.y0 >= 0 and tight.y1 <= figure.get_figheight()


def _rows(name: str, heads: int) -> LayerRows:
    half = (0.5,) * heads
    return LayerRows(layer=name, keys=257, zero_share=half, entropy=half, support=half, cls_mass=half)


def test_a_file_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").write_text('{"loss": 1}\n{"loss": 2}\n')
    assert main(["analyze", "monitor", str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "no observation of a Monitor" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
