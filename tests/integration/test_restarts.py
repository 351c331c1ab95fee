"""Runs that are killed, preempted or queued again: by torchrun, by submitit, and in a SLURM array."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_plugins.checkpoints import recorded_spec
from attn_plugins.training import read_run

ROOT = Path(__file__).parents[2]
LOOPS, ARRAY = ROOT / "integration/loops", ROOT / "integration/slurm/array.sh"
HERE = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(LOOPS)]), "OMP_NUM_THREADS": "1"} | more


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_torchrun_starts_again_what_a_killed_rank_left(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="pip install timm")

    def run(out: Path, *words: str) -> str:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*torchrun, "--max-restarts", "3", *words, str(LOOPS / "with_torchrun.py"), str(out), "12"]
        new_store = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        done = subprocess.run(command, env=new_store, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    whole = run(tmp_path / "whole")
    parts = run(tmp_path / "parts", str(HERE / "dies_once.py"), str(tmp_path / "killed"))
    assert (tmp_path / "killed").read_text() == "0", "in the first attempt"
    verdict = "verified: every layer computes entmax_anneal:alpha=1.5,steps=10"
    assert verdict in whole and verdict in parts
    assert parts.count("step 5 loss") == 1, "it went on from there"
    expected, found = (torch.load(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    assert expected["model"].keys() == found["model"].keys()
    for name, tensor in expected["model"].items():
        assert torch.equal(tensor, found["model"][name]), name
    assert recorded_spec(tmp_path / "parts/last.pth")[0] == "entmax_anneal:alpha=1.5,steps=10"
    for name in ("whole", "parts"):
        assert [one.step for one in read_run(tmp_path / name / "attention.jsonl")] == [0, 5, 10]


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_submitit_queues_a_job_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="pip install submitit")
    psutil = pytest.importorskip("psutil", reason="pip install psutil")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(LOOPS))
    with_submitit: Any = importlib.import_module("with_submitit")

    job = with_submitit.submit(tmp_path, 1500, "local", tasks_per_node=1)
    while not (tmp_path / "last.pth").exists():
        assert not job.done(), job.stderr()
        time.sleep(0.05)
    (task,) = psutil.Process(int(job.job_id)).children()
    task.send_signal(signal.SIGUSR2)  # as SLURM does before a job's time is out, to each of its tasks
    job.results()
    said = (job.stdout() or "") + (job.stderr() or "")
    assert "Requeued job" in said
    assert said.count("step 5 loss") == 1 and "step 1500 loss" in said
    saved = torch.load(tmp_path / "last.pth")
    assert saved["monitor"]["steps"] == 1500
    steps = [one.step for one in read_run(tmp_path / "attention.jsonl")]
    assert steps == list(range(0, 1500, 5))


@pytest.fixture
def array(tmp_path: Path) -> dict[str, str]:
    """The environment of an array's task, with a stand-in of `scontrol` and of the program."""
    for name, body in (
        ("scontrol", '#!/bin/sh\necho "$@" >> "$LOG"\n'),
        (
            "attn-plugins",
            f'#!{sys.executable}\nimport os, sys\nopen(os.environ["SEEN"], "a").write(repr(sys.argv[1:]))\n',
        ),
    ):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(body)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    told = {"PATH": path, "LOG": str(tmp_path / "log"), "SEEN": str(tmp_path / "seen"), "SLURM_JOB_ID": "7"}
    return {**told, "SLURM_ARRAY_TASK_ID": "2"}


def test_a_task_of_an_array_runs_its_line(array: dict[str, str], tmp_path: Path) -> None:
    words = ["probe", "folder", "--images", "it's a $HOME `x`", "--resume"]
    (tmp_path / "commands.txt").write_text(f"false\n{shlex.join(['attn-plugins', *words])}\nfalse\n")
    command = ["bash", str(ARRAY), str(tmp_path / "commands.txt")]
    subprocess.run(command, env=array, check=True, capture_output=True)
    assert (tmp_path / "seen").read_text() == repr(words)
    failed = subprocess.run(command, env=array | {"SLURM_ARRAY_TASK_ID": "3"}, check=False, capture_output=True)
    assert failed.returncode == 1
    beyond = subprocess.run(command, env=array | {"SLURM_ARRAY_TASK_ID": "4"}, check=False, capture_output=True)
    assert beyond.returncode == 2 and b"has no line 4" in beyond.stderr
    subprocess.run([*command[:2], "none.txt"], env=array, check=False, capture_output=True)
    outside = {name: value for name, value in array.items() if name != "SLURM_ARRAY_TASK_ID"}
    alone = subprocess.run(command, env=outside, check=False, capture_output=True)
    assert alone.returncode != 0 and b"sbatch --array" in alone.stderr


def test_the_signal_before_the_time_limit_queues_a_task_again(array: dict[str, str], tmp_path: Path) -> None:
    started = tmp_path / "started"
    (tmp_path / "commands.txt").write_text(f"x\nsh -c 'echo $$ > {started}; exec sleep 30'\n")
    job = subprocess.Popen(["bash", str(ARRAY), str(tmp_path / "commands.txt")], env=array)
    while not started.exists() or not started.read_text():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    job.wait(timeout=10)
    os.kill(int(started.read_text()), signal.SIGTERM)
    assert (tmp_path / "log").read_text() == "requeue 7\n"


def test_the_array_asks_slurm_for_what_its_readme_says() -> None:
    asked = [line.removeprefix("#SBATCH ") for line in ARRAY.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@120"} <= set(asked)
    assert os.access(ARRAY, os.X_OK)
