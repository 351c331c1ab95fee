"""DINOv2's evaluation modules, imported without mmcv 1.x: what they want of it is replaced by empty stand-ins."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest


class _Registry:
    def register_module(self) -> Any:
        return lambda cls: cls


def load(root: Path, file: str, monkeypatch: pytest.MonkeyPatch, **stand_ins: Any) -> ModuleType:
    """Import one file of DINOv2 by path.

    Args:
        root: the checkout.
        file: path below it.
        stand_ins: `module_with_underscores=object`: modules to be found instead of real ones (dots are `__`).
    """
    for name, value in stand_ins.items():
        monkeypatch.setitem(sys.modules, name.replace("__", "."), value)
    name = file.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, root / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[type, type]:
    """(SigLoss, GradientLoss)."""
    builder = mock.MagicMock(LOSSES=_Registry())
    stand_ins = {
        "dinov2__eval__depth__models": ModuleType("models"),
        "dinov2__eval__depth__models__builder": builder,
    }
    folder = "dinov2/eval/depth/models/losses"
    sig = load(root, f"{folder}/sigloss.py", monkeypatch, **stand_ins)
    gradient = load(root, f"{folder}/gradientloss.py", monkeypatch, **stand_ins)
    return sig.SigLoss, gradient.GradientLoss


def linear(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """dinov2/eval/linear.py; its data sets, metrics, logging and fvcore are not used."""
    names = ("data", "data__transforms", "distributed", "eval__metrics", "eval__setup", "eval__utils", "logging")
    stand_ins: dict[str, Any] = {f"dinov2__{name}": mock.MagicMock() for name in names}
    stand_ins |= {"fvcore": mock.MagicMock(), "fvcore__common": mock.MagicMock()}
    stand_ins["fvcore__common__checkpoint"] = mock.MagicMock()
    stand_ins["dinov2__distributed"].get_global_size.return_value = 8
    stand_ins["dinov2__distributed"].is_enabled.return_value = False
    package = ModuleType("dinov2")
    package.__path__ = []
    package.distributed = stand_ins["dinov2__distributed"]  # type: ignore[attr-defined]
    evaluation = ModuleType("dinov2.eval")
    evaluation.__path__ = []
    return load(root, "dinov2/eval/linear.py", monkeypatch, dinov2=package, dinov2__eval=evaluation, **stand_ins)
