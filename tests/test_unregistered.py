"""A file of a callable without a name: refused, until it is registered or another name is asked for."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints.models import ARCH, OPTIONS, bare, images
from torch import Tensor

import attn_plugins
from attn_plugins.checkpoints import CheckpointError, build, identify, save
from attn_plugins.registry import NORMALIZERS


def sharper(z: Tensor, dim: int = -1, factor: float = 2.0) -> Tensor:
    return torch.softmax(factor * z, dim)


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[tuple[Path, Tensor]]:
    model = attn_plugins.patch(bare(), functools.partial(sharper, factor=3.0))
    with NORMALIZERS.temporarily(), torch.no_grad():
        yield save(tmp_path / "model.pth", model, arch=ARCH, arch_options=OPTIONS), model(images())


def test_it_is_named_and_refused(saved: tuple[Path, Tensor]) -> None:
    path, _ = saved
    assert identify(path).spec == f"unregistered:{__name__}.sharper:factor=3.0"
    with pytest.raises(CheckpointError, match=r"sharper.*register it with .*--plugins"):
        build(ARCH, path, **OPTIONS)


def test_it_loads_once_it_is_registered(saved: tuple[Path, Tensor]) -> None:
    path, expected = saved
    attn_plugins.register_normalizer("sharper")(sharper)
    assert identify(path).spec == "sharper:factor=3.0"
    model, identity = build(ARCH, path, **OPTIONS)
    assert (identity["plugins"], identity["plugins_source"]) == ("sharper:factor=3.0", "recorded")
    torch.testing.assert_close(model(images()), expected)


def test_the_caller_may_know_better(saved: tuple[Path, Tensor]) -> None:
    path, _ = saved
    model, identity = build(ARCH, path, "sparsemax", **OPTIONS)
    assert (identity["plugins"], identity["plugins_source"]) == ("sparsemax", "asked for")
    assert {line.spec for line in attn_plugins.describe(model)} == {"sparsemax"}
