"""The kernels, built for narrower registers than this processor has."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from attn_plugins.native import attention as kernel
from attn_plugins.native import build

NARROWER = {"avx512": (), "avx2": ("-mno-avx512f",), "sse": ("-mno-avx512f", "-mno-avx")}


@pytest.fixture(scope="session", params=NARROWER)
def narrower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL | None:
    """The library of a narrower processor; None for this one's own."""
    flags = NARROWER[request.param]
    return built(tmp_path_factory.mktemp(request.param), *flags) if flags else None


@pytest.fixture(scope="class")
def compiled(narrower: ctypes.CDLL | None) -> Iterator[None]:
    """The kernel as narrower processors run it; with the widest, this one's own."""
    with pytest.MonkeyPatch.context() as patch:
        if narrower is not None:
            patch.setattr(kernel, "_library", lambda: narrower)
        yield


def built(folder: Path, *flags: str) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no compiler")
    sources = [str(path) for path in sorted(build.SOURCES.glob("*.c"))]
    subprocess.run([compiler, *build.flags(), *flags, *sources, "-o", str(folder / "k.so"), "-lm"], check=True)
    return kernel.declare(ctypes.CDLL(str(folder / "k.so")))
