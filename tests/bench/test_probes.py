"""The benchmark times the real heads, and its two whole steps differ in what they train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_plugins.bench.probes import BASELINE, PROBE, _steps
from attn_plugins.cli import main

ARCH = "timm/vit_tiny_patch16_224"


@pytest.mark.parametrize("probe", ["voc2012", "kitti"])
def test_both_steps_compute_the_same_loss_and_train_what_they_say(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.AdamW] = []

    class Recorded(torch.optim.AdamW):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    steps = _steps(ARCH, probe, 48, 2, "entmax15")
    trainable, frozen = (sum(p.numel() for g in o.param_groups for p in g["params"]) for o in made[:2])
    assert trainable - frozen > 5_000_000 > frozen
    before = [[p.clone() for g in o.param_groups for p in g["params"]] for o in made[:2]]
    for name, optimizer, old in zip((BASELINE, PROBE), made, before, strict=False):
        steps[name]()
        now = [p for g in optimizer.param_groups for p in g["params"]]
        changed = sum(not torch.equal(a, b) for a, b in zip(now, old, strict=True))
        assert changed >= len(now) - 2, name


@pytest.mark.nightly
def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "probes", "--quick", "--arch", ARCH, "--json", str(tmp_path / "b.json")]) == 0
    printed = capsys.readouterr().out
    assert "frozen probe" in printed and "images/s, peak" in printed
    peers = json.loads((tmp_path / "b.json").read_text())["peers"]
    assert set(peers) == {BASELINE, PROBE, "backbone", "head"}
    assert peers[BASELINE]["peak_mib"] > 0 and peers[PROBE]["images_per_s"] > 0
