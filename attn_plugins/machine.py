"""What this machine is: for benchmarks, reports and bug reports."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["PACKAGES", "machine", "versions"]

PACKAGES = (
    "attn_plugins", "torch", "torchvision", "triton", "numpy", "timm", "transformers", "lightly-train", "entmax",
    "adasplash", "xformers", "pytorch-lightning", "accelerate", "peft", "onedl-mmsegmentation", "onedl-mmengine",
    "onedl-mmcv", "mmsegmentation", "mmengine", "mmcv", "mmcv-lite", "matplotlib",
)  # fmt: skip


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Python's version and those of the packages that are installed, by name."""
    found = {"Python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str = "cpu") -> dict[str, Any]:
    """``device``, the processor's ``name``, its ``threads`` (None for a GPU) and the version of ``torch``."""
    import torch

    if device.startswith("cuda"):
        name, threads = torch.cuda.get_device_name(device), None
    else:
        cpuinfo = Path("/proc/cpuinfo")
        model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
        name, threads = model.group(1) if model else platform.machine(), torch.get_num_threads()
    return {"device": device, "name": name, "threads": threads, "torch": torch.__version__}
