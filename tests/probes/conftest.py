"""Tiny backbones and data sets that the probe tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg", reason="the probes need the extra: pip install attn_plugins[probes]")

import timm

import attn_plugins
import attn_plugins.probes
from attn_plugins.checkpoints import save
from attn_plugins.data.layouts import LAYOUTS

ARCH = "timm/vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {"img_size": 64, "depth": 4}


def checkout(variable: str) -> Path:
    """The official repository that the environment names; the test is skipped, saying so, without."""
    root = os.environ.get(variable)
    if not root:
        pytest.skip(f"{variable} does not name a checkout of the official repository")
    return Path(root)


def tiny_vit(spec: str = "softmax", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model: Any = timm.create_model(ARCH.removeprefix("timm/"), num_classes=0, dynamic_img_size=True, **OPTIONS)
    torch.nn.init.normal_(model.pos_embed, std=0.5)
    return attn_plugins.patch(model, spec).eval()


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny entmax15 ViT that says how it is built."""
    return save(tmp_path_factory.mktemp("backbone") / "tiny.pth", tiny_vit("entmax15"), arch=ARCH, arch_options=OPTIONS)


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data roots of the seven data sets, written by the built-in generator."""
    folder = tmp_path_factory.mktemp("data")
    return {
        name: write(folder / name, *((20, 20) if name == "imagenet" else (4, 2)), seed=0, size=(96, 128))
        for name, write in LAYOUTS.items()
    }
