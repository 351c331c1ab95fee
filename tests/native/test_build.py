"""The compiled library: built once, kept privately, rebuilt when damaged, done without when there is no compiler."""

import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attn_plugins import native
from attn_plugins.attention import attention
from attn_plugins.native import attention as kernel
from attn_plugins.native import build

needs_compiler = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")


@pytest.fixture(autouse=True)
def announced(monkeypatch, caplog):
    """A fresh process's environment; collects what is announced."""
    for name in ("CC", "ATTN_PLUGINS_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.WARNING, build.__name__)
    return lambda: [record.getMessage() for record in caplog.records if "compiling" in record.getMessage()]


def load():
    """What the first call in a new process does."""
    return build._load.__wrapped__()


@needs_compiler
def test_compiles_once_announces_it_and_keeps_the_result(tmp_path, monkeypatch, announced):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library, reason = load()
    cache = tmp_path / "attn_plugins"
    assert reason is None and library.attention_forward and library.rows_forward
    assert len(announced()) == 1 and str(cache) in announced()[0]
    assert cache.stat().st_mode & 0o777 == 0o700
    files = [(path, path.stat().st_mtime_ns) for path in cache.iterdir()]
    assert len(files) == 1 and load()[1] is None
    assert files == [(path, path.stat().st_mtime_ns) for path in cache.iterdir()] and len(announced()) == 1


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "empty", "one byte"])
def test_a_damaged_library_is_built_again(tmp_path, monkeypatch, announced, damage):
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    path = build._cached_library()
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {"truncated": content[:middle], "empty": b"", "one byte": bytearray(content)}[damage]
    if damage == "one byte":
        damaged[middle] ^= 255
    path.write_bytes(damaged)
    assert load()[1] is None and len(announced()) == 2
    assert build._intact(path) and [path] == list(path.parent.iterdir())


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="switches x86 instructions off")
@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx"])
def test_narrower_registers_give_the_same(tmp_path, monkeypatch, flag):
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, flag))
    library, reason = load()
    assert reason is None
    inputs = [torch.randn(2, 2, 45, 10, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(3)]

    def results(normalizer):
        out = attention(*inputs, is_causal=True, normalizer=normalizer, backend="cpu")
        return out, *torch.autograd.grad(out.square().sum(), inputs)

    for normalizer in ("entmax15", "sparsemax", "entmax:alpha=1.25"):
        usual = results(normalizer)
        with monkeypatch.context() as patched:
            patched.setattr(kernel, "_library", lambda: kernel.declare(library))
            narrow = results(normalizer)
        for a, b in zip(usual, narrow, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_cache_that_others_may_write_is_refused(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CC", sys.executable)
    with pytest.warns(RuntimeWarning, match=r"others may write .*set ATTN_PLUGINS_CACHE_DIR"):
        library, _ = load()
    assert library is None and not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_made_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("CC", sys.executable)
    with pytest.warns(RuntimeWarning, match=r"Not a directory.*set ATTN_PLUGINS_CACHE_DIR"):
        assert load()[0] is None


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("CC", "no-such-compiler", "CC='no-such-compiler' is not a program; install one"),
        ("PATH", "/nonexistent", r"there is no C compiler \(cc, gcc or clang\) in PATH; install one"),
        ("CC", "false", "false --version failed"),
    ],
)
def test_a_missing_or_broken_compiler_is_named(tmp_path, monkeypatch, variable, value, reason):
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv(variable, value)
    with pytest.warns(RuntimeWarning, match=reason):
        assert load()[0] is None


def test_a_compiler_that_hangs_is_given_up(tmp_path, monkeypatch):
    slow = tmp_path / "slow-cc"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o700)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "TIMEOUT", 0.2)
    with pytest.warns(RuntimeWarning, match="could not be run: .*timed out"):
        assert load()[0] is None
    assert not list(Path(tmp_path / "cache").iterdir())


def test_without_a_compiler_plain_torch_gives_the_same(tmp_path):
    program = """
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from attn_plugins import attention
    from attn_plugins.functional import entmax15
    q = torch.arange(72.0).reshape(1, 2, 9, 4).sin() * 3
    for _ in range(2):
        out = attention(q, q, q, normalizer="entmax15")
        entmax15(q)
print(sum("plain torch" in str(w.message) for w in caught), f"{out.square().sum().item():.4f}")
"""
    env = {**os.environ, "CC": "no-such-compiler", "ATTN_PLUGINS_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    q = torch.arange(72.0).reshape(1, 2, 9, 4).sin() * 3
    expected = attention(q, q, q, normalizer="entmax15").square().sum().item()
    warnings_given, result = done.stdout.split()
    assert warnings_given == "1" and float(result) == pytest.approx(expected, rel=1e-5)
