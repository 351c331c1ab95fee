"""Start real trainers, unedited or patched, in processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attn_plugins.data.layouts.imagenet import write_imagenet
from attn_plugins.trainers.checkout import apply
from attn_plugins.trainers.insertions import load
from helpers.processes import together

HERE = Path(__file__).parents[1] / "integration"
UPSTREAM = {"dino": "DINO_ROOT", "dinov2": "DINOV2_ROOT", "dinov3": "DINOV3_ROOT"}


def checkout(name: str) -> Path:
    """The official checkout that the environment names; skips the test without."""
    root = os.environ.get(UPSTREAM[name])
    if not root:
        pytest.skip(f"needs {UPSTREAM[name]}, a checkout of github.com/facebookresearch/{name}")
    return Path(root)


def patched_copy(name: str, folder: Path) -> Path:
    """A copy of the official checkout with our patch applied."""
    copy = folder / name
    shutil.copytree(checkout(name), copy, ignore=shutil.ignore_patterns(".git"))
    apply(load(name), copy)
    return copy


def run(*command: object, processes: int = 0, path: Path | None = None, fails: bool = False, **environment: str) -> str:
    """The output of `python COMMAND`, or of several processes together.

    Args:
        command: what follows `python`; a module as `-m`, NAME.
        processes: 0 for one that is told nothing of others.
        path: put on PYTHONPATH.
        fails: whether a non-zero exit is what is expected.
        environment: further environment variables.
    """
    paths = [str(path)] if path else []
    environment = {
        **os.environ,
        **environment,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths + [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]),
    }
    if processes:
        return together(processes, *command, environment=environment, timeout=900)
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, check=False, timeout=900
    )
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, output[-4000:]
    return output


def on_cpu(spec: str | None, *script: object, **options: Any) -> str:
    """`run` a trainer made for CUDA on the CPU; spec None leaves its networks alone."""
    asked = ("--attn-plugins", spec) if spec else ()
    return run("-m", "attn_plugins.launch", "--device", "cpu", *asked, "--", *script, **options)


def numbers(output: str, name: str) -> list[str]:
    """Every value that a trainer has logged as `name: VALUE`, as printed."""
    return re.findall(rf"\b{name}: ([-\d.naif]+)", output)


def image_folder(folder: Path, count: int, size: int = 96) -> Path:
    """The built-in data set in ImageNet's layout; returns the folder that holds train/ and val/."""
    return write_imagenet(folder, num_train=count, num_val=count, size=(size, size), seed=0)


def dinov2_dataset(folder: Path) -> str:
    """ImageNet's 1,281,167 entries, as DINOv2's index of it must have, all of eight images; what its config names."""
    (folder / "train/n0").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(8):
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 96)).save(folder / f"train/n0/n0_{index}.JPEG")
    fields = [("actual_index", "<u4"), ("class_index", "<u4"), ("class_id", "U2"), ("class_name", "U1")]
    entries = np.zeros(1_281_167, dtype=fields)
    entries["actual_index"] = np.arange(len(entries)) % 8
    entries["class_id"] = "n0"
    np.save(folder / "entries-TRAIN.npy", entries)
    return f"ImageNet:split=TRAIN:root={folder}:extra={folder}"
