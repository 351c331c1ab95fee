"""Several processes, and runs that are killed, through the command as a cluster runs it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from attn_plugins.checkpoints import read, save
from attn_plugins.cli import main

from .pictures import ARCH, OPTIONS, folder, vit


def command(tmp_path: Path, out: str, steps: int = 4) -> list[str]:
    return [
        "-m", "attn_plugins", "adapt", str(tmp_path / "softmax.pt"), "--data", str(tmp_path / "pictures"),
        "--out", str(tmp_path / out), "--held-out", "2", "--batch", "4", "--steps", str(steps), "--workers", "0",
        "--sizes", "32", "--lr", "1e-3", "--warmup", "1", "--device", "cpu", "--snapshot-minutes", "0",
    ]  # fmt: skip


@pytest.fixture
def room(tmp_path: Path) -> Path:
    folder(tmp_path / "pictures")
    save(tmp_path / "softmax.pt", vit(), arch=ARCH, arch_options=OPTIONS)
    return tmp_path


@pytest.mark.slow
def test_two_processes_learn_what_one_does(room: Path) -> None:
    assert main(command(room, "one.pt")[2:]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*torchrun, *command(room, "two.pt")], check=True)
    one, two = (read(room / name)["model"] for name in ("one.pt", "two.pt"))
    before = vit().state_dict()
    moved = [name for name in before if not torch.equal(before[name], one[name])]
    assert one.keys() == two.keys() and len(moved) > 20
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


@pytest.mark.nightly
def test_a_killed_command_goes_on_to_the_same_result(room: Path) -> None:
    steps, draw = 40, random.Random(0)
    subprocess.run([sys.executable, *command(room, "whole.pt", steps)], check=True)
    kills = 0
    while not (room / "killed.pt").exists():
        running = subprocess.Popen([sys.executable, *command(room, "killed.pt", steps)])
        snapshot = room / "killed.pt.run" / "snapshot.pt"
        while running.poll() is None and kills < 4:
            if snapshot.exists() and snapshot.stat().st_mtime > time.time() - 0.5:
                time.sleep(draw.random() * 0.3)
                os.kill(running.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        assert running.wait() in (0, -signal.SIGKILL)
    assert kills
    whole, killed = (read(room / name)["model"] for name in ("whole.pt", "killed.pt"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)
