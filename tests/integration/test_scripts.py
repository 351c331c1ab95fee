"""The scripts in integration/ build the commands that they say; the trainers themselves run in the tests beside."""

import os
import stat
import subprocess
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


@pytest.fixture
def start(tmp_path):
    """Run a folder's script with stand-ins that print what they were asked to run."""
    for name in ("torchrun", "sbatch", "attn-plugins"):
        stand_in = tmp_path / "bin" / name
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)

    def run(folder, *arguments, **environment):
        done = subprocess.run(
            ["bash", str(FOLDER / folder / "train.sh"), *arguments],
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


def test_every_trainer_has_a_folder_with_a_readme_of_one_screen_and_a_script():
    folders = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
    assert folders == sorted(SETTINGS)
    for folder in folders:
        assert len((FOLDER / folder / "README.md").read_text().splitlines()) <= 60
        assert os.access(FOLDER / folder / "train.sh", os.X_OK)


@pytest.mark.parametrize("folder", SETTINGS)
def test_one_machine_several_machines_and_slurm(start, folder):
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
def test_dino_trains_table_1_with_a_total_batch_of_1024(start, method):
    command = start("dino", method, NODES="2", GPUS="8")
    for expected in ("--arch vit_small", "--patch_size 16", "--epochs 200", f"--attn_plugins {method}"):
        assert expected in command
    assert "--batch_size_per_gpu 64" in command
    assert "attn-plugins apply dino /src/dino" in command


@pytest.mark.parametrize("folder", SETTINGS)
def test_the_cpu_check_goes_through_the_launcher_once(start, folder):
    command = start(folder, "entmax15", DEVICE="cpu", NODES="1", GPUS="1")
    assert command.count("-m attn_plugins.launch --device cpu") == 1


@pytest.mark.parametrize("folder", SETTINGS)
def test_what_is_missing_is_named(start, folder):
    assert "entmax15" in start(folder)
    for variable in SETTINGS[folder]:
        assert variable in start(folder, "entmax15", **{variable: ""})
