"""Monitors of trainers that nobody edited: the network that an optimizer trains, and no other."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import tiny_vit
from helpers.tiny_vit import TinyViT
from torch import nn

from attn_plugins.patching.record import spec_of
from attn_plugins.trainers import patch_networks
from attn_plugins.trainers.following import follow, steps_made
from attn_plugins.training import read_run

HERE = Path(tiny_vit.__file__).parent


def step(optimizer: torch.optim.Optimizer, *networks: nn.Module) -> None:
    for network in networks:
        network(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTN_PLUGINS_MONITOR", str(tmp_path / "run.jsonl"))
    monkeypatch.setenv("ATTN_PLUGINS_MONITOR_EVERY", "2")
    return tmp_path / "run.jsonl"


def test_the_student_is_watched_and_the_teacher_is_not(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = TinyViT(depth=3), TinyViT()
    patch_networks("entmax15", student, teacher)
    optimizer = torch.optim.AdamW(student.parameters())
    for _ in range(3):
        with torch.no_grad():
            teacher(torch.randn(2, 3, 16, 16))
        step(optimizer, student)
    seen = read_run(run_file)
    assert [one.step for one in seen] == [0, 2] and {len(one.layers) for one in seen} == {3}
    assert "attn_plugins: step 2: zero_share " in capsys.readouterr().err


def test_softmax_is_watched_too_and_computes_what_it_did(run_file: Path) -> None:
    torch.manual_seed(0)
    network = TinyViT()
    images, plain = torch.randn(2, 3, 16, 16), copy.deepcopy(network)
    patch_networks("softmax", network)
    assert spec_of(network) == "softmax"
    assert torch.equal(network(images), plain(images))
    step(torch.optim.AdamW(network.parameters()), network)
    assert read_run(run_file)[0].means()["zero_share"] == 0


def test_a_run_that_goes_on_counts_from_its_optimizer(run_file: Path) -> None:
    network = TinyViT()
    patch_networks("entmax15", network)
    optimizer = torch.optim.AdamW(network.parameters())
    state = optimizer.state_dict()
    state["state"] = {
        index: {"step": torch.tensor(7.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for index, p in enumerate(network.parameters())
    }
    optimizer.load_state_dict(state)
    for _ in range(4):
        step(optimizer, network)
    assert [one.step for one in read_run(run_file)] == [8, 10]


def _counted(counts: list[bool], held: bool, optimizer: torch.optim.Optimizer) -> None:
    counts.append(held)


def test_each_network_goes_by_its_own_optimizer_and_others_by_the_first() -> None:
    one, other, teacher = TinyViT(), TinyViT(), TinyViT()
    counts: dict[str, list[bool]] = {"one": [], "other": [], "teacher": []}
    for name, network in (("one", one), ("other", other), ("teacher", teacher)):
        follow(network, partial(_counted, counts[name]))
    first, second = (torch.optim.SGD(network.parameters(), lr=0.1) for network in (one, other))
    unrelated = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    step(first, one)
    step(first, one)
    step(second, other)
    unrelated.step()
    assert counts["one"] == [True, True] and counts["other"][-1:] == [True]
    assert not any(counts["teacher"]) and len(counts["teacher"]) in (2, 0)  # the first may be an older test's
    assert steps_made(first) == 1


@pytest.mark.parametrize(("variable", "value"), [("MONITOR_EVERY", "often"), ("MONITOR", "run.csv")])
def test_variables_that_mean_nothing_are_refused(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"ATTN_PLUGINS_{variable}", value)
    with pytest.raises(ValueError, match=value):
        patch_networks("entmax15", TinyViT())


@pytest.mark.slow
def test_the_launcher_writes_the_run_of_an_unedited_trainer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "attn_plugins.launch", "--attn-plugins", "entmax15"]
    command += ["--monitor", str(tmp_path / "run.jsonl"), "--monitor-every", "2"]
    command += ["--", str(HERE / "trainer.py"), "--out", str(tmp_path), "--steps", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE, check=False)
    assert done.returncode == 0, done.stderr
    assert [(one.step, one.spec) for one in read_run(tmp_path / "run.jsonl")] == [(0, "entmax15"), (2, "entmax15")]
