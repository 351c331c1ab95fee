"""The scripts in integration/ build the commands that they say; the trainers themselves run in the tests beside."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "integration"
SETTINGS = {
    "dino": {"DINO_ROOT": "/src/dino", "DATA": "/data"},
    "dinov2": {"DINOV2_ROOT": "/src/dinov2", "DATASET": "ImageNet:split=TRAIN:root=/d:extra=/e"},
    "dinov3": {"DINOV3_ROOT": "/src/dinov3", "DATASET": "ImageNet:split=TRAIN:root=/d:extra=/e"},
    "lightly_train": {"DATA": "/data"},
    "timm": {"TIMM_ROOT": "/src/timm", "DATA": "/data"},
}
TRAINER = {
    "dino": "/src/dino/main_dino.py",
    "dinov2": "/src/dinov2/dinov2/train/train.py",
    "dinov3": "/src/dinov3/dinov3/train/train.py",
    "lightly_train": "lightly_train/train.py",
    "timm": "/src/timm/train.py",
}


def stand_in(folder: Path, name: str, body: str) -> None:
    """A program of that name."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(body)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., str]:
    """Run a folder's script with stand-ins that print what they were asked to run."""
    for name in ("torchrun", "sbatch", "attn-plugins"):
        stand_in(tmp_path / "bin", name, f'#!/bin/sh\necho {name} "$@"\n')

    def run(folder: str, *arguments: str, cwd: Path | None = None, **environment: str) -> str:
        done = subprocess.run(
            ["bash", str(FOLDER / folder / "train.sh"), *arguments],
            cwd=cwd,
            env={
                "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "OUT": str(tmp_path / "out"),
                **SETTINGS[folder],
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    return run


EXPERIMENTS = {"adapt", "demo", "loops", "slurm"}
"""Folders of this project's own measurements and weights, whole loops and SLURM arrays: no `train.sh` starts them."""


def test_every_trainer_has_a_folder_with_a_readme_of_one_screen_and_a_script() -> None:
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert folders == {*SETTINGS, *EXPERIMENTS}
    for folder in folders:
        assert len((FOLDER / folder / "README.md").read_text().splitlines()) <= 60
    for folder in SETTINGS:
        assert os.access(FOLDER / folder / "train.sh", os.X_OK)


@pytest.mark.parametrize("folder", SETTINGS)
def test_one_machine_several_machines_and_slurm(start: Callable[..., str], folder: str) -> None:
    local = start(folder, "entmax15", "--extra", NODES="1", GPUS="4")
    assert "torchrun --standalone --nproc_per_node 4" in local
    nodes = start(folder, "entmax15", "--extra", RUN="nodes", NODES="3", GPUS="4", HEAD="first")
    assert "torchrun --nnodes 3 --nproc_per_node 4" in nodes
    assert "--rdzv_endpoint first:29500" in nodes
    slurm = start(folder, "entmax15", "--extra", RUN="slurm", NODES="3", GPUS="4", SBATCH_ARGS="--partition=gpu")
    assert "sbatch --nodes 3 --gpus-per-node 4" in slurm
    assert "--partition=gpu" in slurm
    assert "srun python" in slurm or "srun torchrun --nnodes 3 --nproc_per_node 4" in slurm
    for command in (local, nodes, slurm):
        assert TRAINER[folder] in command
        assert "entmax15" in command
        assert command.rstrip().endswith("--extra")


@pytest.mark.parametrize("method", ["softmax", "registers:num=4", "specialization", "entmax15"])
def test_dino_trains_table_1_with_a_total_batch_of_1024(start: Callable[..., str], method: str) -> None:
    command = start("dino", method, NODES="2", GPUS="8")
    for expected in ("--arch vit_small", "--patch_size 16", "--epochs 200", f"--attn_plugins {method}"):
        assert expected in command
    assert "--batch_size_per_gpu 64" in command
    assert "attn-plugins apply dino /src/dino" in command


@pytest.mark.parametrize("folder", SETTINGS)
def test_the_cpu_check_goes_through_the_launcher_once(start: Callable[..., str], folder: str) -> None:
    command = start(folder, "entmax15", DEVICE="cpu", NODES="1", GPUS="1")
    assert command.count("-m attn_plugins.launch --device cpu") == 1


@pytest.mark.parametrize("folder", SETTINGS)
def test_what_is_missing_is_named(start: Callable[..., str], folder: str) -> None:
    assert "entmax15" in start(folder)
    for variable in SETTINGS[folder]:
        assert variable in start(folder, "entmax15", **{variable: ""})


@pytest.mark.parametrize("folder", SETTINGS)
@pytest.mark.parametrize("how", ["local", "slurm"])
def test_relative_paths_are_of_the_folder_it_is_called_in(
    start: Callable[..., str], folder: str, how: str, tmp_path: Path
) -> None:
    relative = {name: f"my {name.lower()}" for name in SETTINGS[folder] if name != "DATASET"}
    if folder in ("dinov2", "dinov3"):
        relative["CONFIG"] = "own.yaml"
    out = start(folder, "entmax15", cwd=tmp_path, RUN=how, CDPATH=str(tmp_path), **{**relative, "OUT": "my out"})
    for path in (*relative.values(), "my out"):
        assert str(tmp_path / path) in out, path
    assert how == "local" or (tmp_path / "my out").is_dir()


ODD = ["--note", "two words", "line\nbreak", "naïve ✓", "it's", '$HOME `id` \\ "q"', "", "*", "~", "a;b&c|d", "-"]
PROBE = f"#!{sys.executable}\nimport json, os, sys\n"


@pytest.fixture
def slurm(start: Callable[..., str], tmp_path: Path) -> Callable[..., tuple[list[str], list[str]]]:
    """Run a folder's script with a stand-in for SLURM, then the job that it submits, in the shell named.

    Returns sbatch's arguments, and those of the job's `srun`.
    """
    stand_in(tmp_path / "bin", "sbatch", PROBE + "json.dump(sys.argv[1:], open(os.environ['JOB'], 'w'))\n")
    stand_in(tmp_path / "bin", "srun", PROBE + "json.dump(sys.argv[1:], open(os.environ['STEP'], 'w'))\n")
    stand_in(tmp_path / "bin", "scontrol", '#!/bin/sh\necho "$@" >> "$LOG"; echo first; echo second\n')
    files = {name: str(tmp_path / name.lower()) for name in ("JOB", "STEP", "LOG")}

    def run(folder: str, *arguments: str, shell: str = "dash", **environment: str) -> tuple[list[str], list[str]]:
        problems = start(folder, *arguments, RUN="slurm", **files, **environment)
        assert problems == "" or problems.startswith("attn-plugins apply"), problems
        job = json.loads(Path(files["JOB"]).read_text())
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        script = "#!/bin/sh\n\n# This script was created by sbatch --wrap.\n\n" + job[job.index("--wrap") + 1]
        (tmp_path / "script").write_text(script)
        env = {"PATH": path, "SLURM_JOB_ID": "7", **files}
        subprocess.run([shell, str(tmp_path / "script")], env=env, check=True, timeout=60)
        return job, json.loads(Path(files["STEP"]).read_text())

    return run


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("folder", SETTINGS)
def test_words_of_any_kind_reach_a_slurm_job(
    slurm: Callable[..., tuple[list[str], list[str]]], folder: str, shell: str, tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    out = str(tmp_path / "été out")
    _, step = slurm(folder, "entmax15", *ODD, shell=shell, OUT=out)
    assert step[-len(ODD) :] == ODD
    assert out in step
    assert "first:29500" in step or step[0] == "python"


@pytest.mark.parametrize("folder", SETTINGS)
def test_a_slurm_job_is_queued_again(slurm: Callable[..., tuple[list[str], list[str]]], folder: str) -> None:
    job, _ = slurm(folder, "entmax15", REQUEUE="300", SBATCH_ARGS="--partition=gpu --comment='two words'")
    assert "--requeue" in job and job[job.index("--signal") + 1] == "B:USR1@300"
    assert job[job.index("--open-mode") + 1] == "append"
    assert job[-4:-2] == ["--partition=gpu", "--comment=two words"]
    readme = (FOLDER / folder / "README.md").read_text()
    assert "| resume |" in readme and "--requeue" in readme and "signal" in readme


def test_the_signal_before_the_time_limit_queues_the_job_again(
    slurm: Callable[..., tuple[list[str], list[str]]], tmp_path: Path
) -> None:
    slurm("dino", "entmax15")
    stand_in(tmp_path / "bin", "srun", '#!/bin/sh\necho $$ > "$STEP"; exec sleep 30\n')
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    env |= {name: str(tmp_path / name.lower()) for name in ("STEP", "LOG")}
    (tmp_path / "step").unlink()
    job = subprocess.Popen(["sh", str(tmp_path / "script")], env=env)
    while not (tmp_path / "step").exists() or not (tmp_path / "step").read_text():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    job.wait(timeout=10)
    os.kill(int((tmp_path / "step").read_text()), signal.SIGTERM)
    assert (tmp_path / "log").read_text().splitlines()[-1] == "requeue 7"


def test_the_jobs_status_is_the_trainers(slurm: Callable[..., tuple[list[str], list[str]]], tmp_path: Path) -> None:
    slurm("dino", "entmax15")
    stand_in(tmp_path / "bin", "srun", "#!/bin/sh\nexit 3\n")
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    assert subprocess.run(["sh", str(tmp_path / "script")], env=env, check=False).returncode == 3


def test_timm_resumes_from_its_last_checkpoint_if_there_is_one(
    start: Callable[..., str], slurm: Callable[..., tuple[list[str], list[str]]], tmp_path: Path
) -> None:
    last = tmp_path / "out" / "run" / "last.pth.tar"
    assert "--resume" not in slurm("timm", "entmax15")[1]
    assert "--resume" not in slurm("timm", "entmax15", "--extra")[1]
    last.parent.mkdir(parents=True)
    last.write_text("")
    step = slurm("timm", "entmax15", "--extra")[1]
    assert step[step.index("--resume") + 1] == str(last) and step[-1] == "--extra"
    step = slurm("timm", "entmax15", EXPERIMENT="other")[1]
    assert "--resume" not in step and step[step.index("--experiment") + 1] == "other"
    stand_in(tmp_path / "bin", "torchrun", '#!/bin/sh\necho torchrun "$@"\n')
    assert f"--experiment run --resume {last} --model" in start("timm", "entmax15")
    assert "--resume" not in start("timm", "entmax15", EXPERIMENT="other")


def test_lightly_train_goes_on_where_it_was(slurm: Callable[..., tuple[list[str], list[str]]]) -> None:
    assert "resume_interrupted=true" in slurm("lightly_train", "entmax15")[1]
