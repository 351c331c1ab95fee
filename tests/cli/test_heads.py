"""A sweep of the fast probe: many heads, one pass of the backbone."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg", reason="the probes need the extra: pip install attn_plugins[probes]")

import timm

from attn_plugins.checkpoints import save
from attn_plugins.cli import main
from attn_plugins.cli.heads import heads
from attn_plugins.probes import FrozenViT
from attn_plugins.probes.run.runner import build_runner
from attn_plugins.results import read_result

ARCH = "vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {"img_size": 64, "depth": 3}


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """The command, for six small pictures with masks and a tiny ViT."""
    model = timm.create_model(ARCH, num_classes=0, dynamic_img_size=True, **OPTIONS)
    save(tmp_path / "vit.pth", model, arch=f"timm/{ARCH}", arch_options=OPTIONS)
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        for kind, values in (("images", pixels), ("masks", pixels[..., 0] // 128)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / kind / f"{number}.png")
    command = ["probe", "folder", "--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"), "--void"]
    command += [
        "none",
        "--checkpoint",
        str(tmp_path / "vit.pth"),
        "--work-dir",
        str(tmp_path / "run"),
        "--workers",
        "0",
    ]
    return [*command, "--iterations", "2", "--store", str(tmp_path / "features")]


def test_the_heads_of_a_sweep() -> None:
    assert heads(None, [0.1, 0.2]) == [(None, 0.1), (None, 0.2)]
    assert heads([5, 11], None) == [((5, 11), None), ((5,), None), ((11,), None)]
    assert heads([5], [0.1]) == [((5,), 0.1)]


@pytest.mark.nightly
def test_every_head_is_trained_and_no_feature_computed_twice(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    forward = FrozenViT.forward

    def counted(self: FrozenViT, images: torch.Tensor) -> Any:
        seen.append(len(images))
        return forward(self, images)

    real = subprocess.run

    def here(command: Any, *more: Any, **options: Any) -> Any:
        """mim's work, in this process; whatever else mmengine starts is started."""
        if "--work-dir" not in command:
            return real(command, *more, **options)
        folder = Path(command[command.index("--work-dir") + 1])
        build_runner(str(folder / "config.py"), {}, folder).train()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(FrozenViT, "forward", counted)
    monkeypatch.setattr("attn_plugins.cli.heads.subprocess.run", here)
    assert main([*data, "--fast", "--layers", "0", "2", "--learning-rates", "0.001", "0.1"]) == 0
    assert sum(seen) == 6
    results = {file.parent.name: read_result(file) for file in (tmp_path / "run").glob("*/probe.json")}
    assert set(results) == {f"layers_{layers}-lr_{rate}" for layers in ("0_2", "0", "2") for rate in ("0.001", "0.1")}
    assert results["layers_0_2-lr_0.1"].backbone["layers"] == [0, 2]
    told = capsys.readouterr().out
    values = [float(line.split("  ")[-2]) for line in told.splitlines() if str(tmp_path / "run" / "layers") in line][
        -6:
    ]
    assert values == sorted(values) and "chosen on the images that it is measured on" in told


def test_a_sweep_is_of_the_fast_probe_alone(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*data, "--layers", "0"]) == 2
    assert "--learning-rates and --layers sweep the fast probe: add --fast" in capsys.readouterr().err
