"""`attn-plugins watch` on folders as trainers leave them: every checkpoint once, broken ones told, figures grow."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_vit import TinyViT

pytest.importorskip("matplotlib", reason="pip install 'attn_plugins[analysis]'")

import attn_plugins.cli.watch
from attn_plugins.analysis.checkpoints_of import find_checkpoints
from attn_plugins.checkpoints import save
from attn_plugins.cli import main
from attn_plugins.results import Evaluation, ProbeResult, write_result

RUNS = {
    "DINOv1": (["checkpoint0000.pth", "checkpoint0020.pth", "checkpoint.pth", "log.txt"], "epoch", [0, 20]),
    "DINOv2": (
        [
            "eval/training_12499/teacher_checkpoint.pth",
            "eval/training_24999/teacher_checkpoint.pth",
            "model_0012499.rank_0.pth",
            "last_checkpoint.rank_0",
        ],
        "step",
        [12499, 24999],
    ),
    "DINOv3": (["ckpt/999/.metadata", "ckpt/999/__0_0.distcp", "eval/999/teacher_checkpoint.pth"], "step", [999]),
    "timm": (["checkpoint-9.pth.tar", "checkpoint-10.pth.tar", "last.pth.tar", "model_best.pth.tar"], "epoch", [9, 10]),
    "Lightning": (["epoch=2-step=12.ckpt", "checkpoints/epoch=3-step=16.ckpt", "last.ckpt"], "step", [12, 16]),
    "transformers": (
        ["checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt", "checkpoint-1000/model.safetensors"],
        "step",
        [500, 1000],
    ),
    "plugins": (["entmax15.pth", "vits14_pretrain.pth", "vit_0100.pth"], "step", [100]),
}


@pytest.mark.parametrize("trainer", RUNS)
def test_checkpoints_are_found_by_their_numbers(trainer: str, tmp_path: Path) -> None:
    names, unit, numbers = RUNS[trainer]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 10)
    found = find_checkpoints(tmp_path)
    assert [(one.unit, one.number) for one in found] == [(unit, number) for number in numbers]
    if trainer == "DINOv3":
        assert found[0].path.name == "teacher_checkpoint.pth"
    if trainer == "transformers":
        assert (found[0].path, found[0].size) == (tmp_path / "checkpoint-500", 20)


Watch = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A DINO run of three epochs, one of them cut off."""
    model = attn_plugins.patch(TinyViT(), "entmax15")
    (tmp_path / "run").mkdir()
    for epoch in (0, 20):
        save(tmp_path / "run" / f"checkpoint{epoch:04d}.pth", model)
    whole = (tmp_path / "run/checkpoint0020.pth").read_bytes()
    (tmp_path / "run/checkpoint0040.pth").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "run"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was probed: each layer's mIoU is the number in the file's name, and the layer."""
    seen: list[Path] = []

    def stand_in(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        told = dict(pairwise(command))
        checkpoint, folder = Path(told["--checkpoint"]), Path(told["--work-dir"])
        seen.append(checkpoint)
        epoch = float(checkpoint.stem[-4:])
        for layers in ([0, 1], [0], [1]):
            for rate, worse in (("1e-3", 0.5), ("1e-2", 0.0)):
                score = Evaluation("val", 9, {"mIoU": epoch + sum(layers) - worse})
                name = folder / f"layers_{'_'.join(map(str, layers))}-lr_{rate}"
                name.mkdir(parents=True, exist_ok=True)
                write_result(name, ProbeResult("voc2012", 9, {"plugins": "entmax15", "layers": layers}, (score,)))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", stand_in)
    return seen


PROBE = ["--", "probe", "voc2012", "--data-root", "d", "--fast", "--layers", "0", "1"]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "watch.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_checkpoint_is_measured_once_and_a_broken_one_is_told(
    run: Path, measured: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["watch", str(run), "--once", "--settle", "0", *PROBE]
    assert main(command) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "epoch 20 (checkpoint0020.pth, entmax15): mIoU 21"
    assert "epoch 40 (checkpoint0040.pth, not recorded): not measured, the others go on:" in told[2]
    assert [path.name for path in measured] == ["checkpoint0000.pth", "checkpoint0020.pth"]
    out = run / "watch"
    found = {(r["number"], r["layer"]): float(r["value"]) for r in rows(out) if not r["problem"]}
    assert found == {(str(e), layer): e + more for e in (0, 20) for layer, more in (("", 1), ("0", 0), ("1", 1))}
    assert {path.name for path in out.glob("watch*")} >= {"watch.html", "watch-mIoU.png", "watch-mIoU-map.svg"}

    assert main(command) == 0 and len(measured) == 2 and not capsys.readouterr().out
    whole = (run / "checkpoint0020.pth").read_bytes()
    (run / "checkpoint0040.pth").write_bytes(whole)  # the trainer has ended to write it
    assert main(command) == 0
    assert [path.name for path in measured[2:]] == ["checkpoint0040.pth"]
    assert not any(r["problem"] for r in rows(out)) and len(rows(out)) == 9
    page = (out / "watch.html").read_text()
    assert "checkpoint0040.pth" in page and "watch-mIoU-map.png" in page


@pytest.mark.slow
def test_it_follows_a_run_and_leaves_alone_what_is_being_written(
    run: Path, measured: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(len(measured))
        if len(looks) == 2:
            (run / "checkpoint0060.pth").write_bytes((run / "checkpoint0020.pth").read_bytes())
        if len(looks) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("attn_plugins.cli.watch.time.sleep", sleep)
    assert main(["watch", str(run), "--settle", "3600", *PROBE]) == 0
    assert looks == [0, 2, 2, 3] and measured[-1].name == "checkpoint0060.pth"
    assert "ended; the same command goes on" in capsys.readouterr().out


def test_what_a_command_could_not_do_is_tried_again_when_it_is_mended(
    run: Path, monkeypatch: pytest.MonkeyPatch, measured: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = subprocess.run

    def fails(command: list[str], stdout: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        stdout.write(b"Traceback\nValueError: no such data\n")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr("subprocess.run", fails)
    start = ["watch", str(run), "--once", "--settle", "0"]
    assert main([*start, *PROBE]) == 1
    assert "status 1: ValueError: no such data (see " in capsys.readouterr().out
    monkeypatch.setattr("subprocess.run", stand_in)
    assert main([*start, *PROBE]) == 0 and not measured
    assert main([*start, "--retry", *PROBE]) == 1 and len(measured) == 2
    assert main([*start, *PROBE, "--seed", "1"]) == 2
    assert "holds what another command found" in capsys.readouterr().err


def test_bad_usage_is_said_before_anything_is_waited_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run / "none"), "--once", *PROBE]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert main(["watch", str(run), "--once", "--", "train"]) == 2
    assert "none of probe, analyze, report" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["watch", str(run), "--once", "--", "probe", "voc2012", "--sede", "1"])
    (run / "watch").mkdir()
    (run / "watch" / "watch.csv").write_text("a,b\n1,2\n")
    assert main(["watch", str(run), "--once", *PROBE]) == 2
    assert "is not what this command writes" in capsys.readouterr().err


@pytest.mark.nightly
def test_an_analysis_of_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timm = pytest.importorskip("timm")
    from PIL import Image

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    model = attn_plugins.patch(timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes), "entmax15")
    (tmp_path / "run").mkdir()
    (tmp_path / "images").mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        pixels = torch.randint(0, 255, (32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    for step in (500, 1000, 1500):
        save(tmp_path / "run" / f"step_{step}.pth", model, arch="timm/vit_tiny_patch16_224", arch_options=sizes)
        for block in model.blocks:
            block.attn.qkv.weight.data.mul_(4)
    words = ["analyze", "attention", "--data", str(tmp_path / "images"), "--size", "32"]
    assert main(["watch", str(tmp_path / "run"), "--once", "--settle", "0", "--", *words]) == 0
    zeros = {
        (r["number"], r["layer"]): float(r["value"]) for r in rows(tmp_path / "run/watch") if "zero_" in r["metric"]
    }
    assert len(zeros) == 9 and zeros["500", "2"] < zeros["1000", "2"] < zeros["1500", "2"]
    assert (tmp_path / "run/watch/watch-attention-zero_share-map.png").exists()
