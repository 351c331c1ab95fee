"""The picture of a training run holds what the monitor wrote, and nothing else."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from helpers.tiny_vit import TinyViT

pytest.importorskip("matplotlib", reason="pip install 'attn_plugins[analysis]'")

import attn_plugins
from attn_plugins.cli import main
from attn_plugins.training import read_run


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
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"monitor.png", "monitor.svg", "monitor.csv"}
    with (tmp_path / "out" / "monitor.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = read_run(tmp_path / "run.jsonl")[-1]
    assert len(rows) == 2 * 3 * 2
    assert float(rows[-1]["entropy"]) == last.layers[2].entropy[1]
    assert float(rows[-1]["alpha"]) == pytest.approx(1.0 if spec == "softmax" else 1.5)


def test_a_file_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").write_text('{"loss": 1}\n{"loss": 2}\n')
    assert main(["analyze", "monitor", str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "no observation of a Monitor" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
