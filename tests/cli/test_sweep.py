"""A sweep of probes: every checkpoint under every spec once, what is finished not again, and one table."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg", reason="the probes need the extra: pip install attn_plugins[probes]")

import timm

import attn_plugins
from attn_plugins.checkpoints import save
from attn_plugins.cli import main
from attn_plugins.results import DataSplit, Evaluation, ProbeResult, read_result, write_result

ARCH = "vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {"img_size": 64, "depth": 2}
SILENT = [
    "--arch",
    f"timm/{ARCH}",
    "--cfg-options",
    *(f"model.backbone.arch_options.{k}={v}" for k, v in OPTIONS.items()),
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a checkpoint that records nothing, one that records entmax15, and pictures."""
    torch.manual_seed(0)
    model = timm.create_model(ARCH, num_classes=0, dynamic_img_size=True, **OPTIONS)
    torch.save({"model": model.state_dict()}, tmp_path / "plain.pth")
    save(tmp_path / "sparse.pth", attn_plugins.patch(model, "entmax15"), arch=f"timm/{ARCH}", arch_options=OPTIONS)
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
        for kind, values in (("images", pixels), ("masks", pixels[..., 0] // 128)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / kind / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The probes that were started, each of which leaves a result; one of `sparsemax` fails."""
    calls: list[list[str]] = []

    def stand_in(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        words = command[3:]
        calls.append(words)
        told = dict(pairwise(words))
        spec = told.get("--plugins", "entmax15")
        if spec == "sparsemax":
            return subprocess.CompletedProcess(command, 1)
        data = {role: DataSplit("D", "/d", role, 4) for role in ("train", "val")}
        score = Evaluation("val", 40, {"mIoU": 30.0 + len(calls)})
        backbone = {"digest": told["--checkpoint"], "checkpoint": told["--checkpoint"], "plugins": spec}
        write_result(Path(told["--work-dir"]), ProbeResult("voc2012", 40, backbone, (score,), data, {}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("attn_plugins.cli.sweep.subprocess.run", stand_in)
    return calls


Said = Callable[[], tuple[str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: tuple(capsys.readouterr())  # type: ignore[return-value]


def test_what_is_printed_is_what_is_run(files: Path, started: list[list[str]], said: Said) -> None:
    command = ["sweep", "voc2012", "--checkpoints", "plain.pth", "--specs", "softmax", "Entmax15+registers:num=4"]
    command += ["--data-root", "my data", "--fast", "--amp", "--iterations", "40"]
    assert main([*command, "--print"]) == 0 and not started
    printed = [shlex.split(line) for line in said()[0].splitlines()]
    assert main(command) == 0
    assert [["attn-plugins", *words] for words in started] == printed
    for words, spec in zip(printed, ("softmax", "entmax15+registers:num=4"), strict=True):
        assert words[:3] == ["attn-plugins", "probe", "voc2012"] and words[-1] == "--resume"
        told = dict(pairwise(words))
        assert (told["--data-root"], told["--amp"], told["--plugins"]) == ("my data", "bf16", spec)
        assert Path(told["--work-dir"]).parent == Path("work_dirs/voc2012_fast")
    table = said()[0]
    for spec, value in (("softmax", "31.00"), ("entmax15+registers:num=4", "32.00")):
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {spec}, last |")]
        assert f" {value} " in row


def test_what_is_finished_is_not_run_again(files: Path, started: list[list[str]], said: Said) -> None:
    command = ["sweep", "voc2012", "--data-root", "d", "--checkpoints", "plain.pth", "sparse.pth", "--specs"]
    assert main([*command, "auto"]) == 0
    assert len(started) == 2 and "--plugins" not in started[0]
    unfinished = Path(started[0][started[0].index("--work-dir") + 1])
    result = read_result(unfinished / "probe.json")
    cut = ProbeResult(result.probe, 80, result.backbone, result.evaluations, result.data, {})
    write_result(unfinished, cut)
    assert main([*command, "auto", "--workers", "3"]) == 0
    assert [words[words.index("--work-dir") + 1] for words in started[2:]] == [str(unfinished)]
    said()
    assert main([*command, "auto", "--print"]) == 0 and said()[0] == ""
    assert main([*command, "auto", "--seed", "1"]) == 2
    err = said()[1]
    assert "holds a run of another command" in err and "--seed 1" in err and "Give another --work-dir" in err
    assert len(started) == 3


def test_the_others_go_on_where_one_fails(files: Path, started: list[list[str]], said: Said) -> None:
    command = ["sweep", "voc2012", "--data-root", "d", "--checkpoints", "plain.pth", "--specs"]
    assert main([*command, "softmax", "sparsemax", "entmax15"]) == 1
    out, err = said()
    assert len(started) == 3 and "failed, the others go on: attn-plugins probe voc2012" in err
    assert "softmax, last" in out and "entmax15, last" in out and "sparsemax, last" not in out
    assert main([*command, "softmax", "sparsemax", "entmax15"]) == 1 and len(started) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--checkpoints", "none.pth"], "none.pth: no such checkpoint"),
        (["--checkpoints", "sparse.pth", "--specs", "softmax"], "was trained with 'entmax15' and 'softmax' was asked"),
        (["--checkpoints", "plain.pth", "--specs", "entmx15"], "entmax15"),
        (["--checkpoints", "plain.pth", "./plain.pth", "--specs", "softmax"], "name each once"),
    ],
)
def test_what_cannot_be_probed_is_named_before_anything_runs(
    more: list[str], message: str, files: Path, started: list[list[str]], said: Said
) -> None:
    assert main(["sweep", "voc2012", "--data-root", "d", *more]) == 2
    assert message in said()[1] and not started and not (files / "work_dirs").exists()


@pytest.mark.nightly
def test_two_specs_of_a_fast_probe(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "folder", "--images", "images", "--masks", "masks", "--void", "none", "--workers", "0"]
    command += ["--iterations", "2", "--fast", "--checkpoints", "plain.pth", "--specs", "softmax", "entmax15", *SILENT]
    assert main(command) == 0
    results = [read_result(file) for file in (files / "work_dirs").rglob("probe.json")]
    assert {result.backbone["plugins"] for result in results} == {"softmax", "entmax15"}
    out = capfd.readouterr().out
    for result in results:
        assert f"| {result.backbone['plugins']}, last | {result.evaluations[-1].metrics['mIoU']:.2f}" in out
    assert main([*command, "--print"]) == 0 and capfd.readouterr().out == ""
