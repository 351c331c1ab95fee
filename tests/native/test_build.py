"""The compiled library: built once, kept privately, rebuilt when damaged, done without when there is no compiler."""

import logging
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_plugins import native
from attn_plugins.attention import attention
from attn_plugins.native import attention as kernel
from attn_plugins.native import build

needs_compiler = pytest.mark.skipif(native.unavailable() is not None, reason=f"no kernels: {native.unavailable()}")


@pytest.fixture(autouse=True)
def announced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """A fresh process's environment, and builds that take little time; collects what is announced."""
    monkeypatch.setattr(build, "FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in FLAGS))
    for name in ("CC", "ATTN_PLUGINS_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.WARNING, build.__name__)
    return lambda: [record.getMessage() for record in caplog.records if "compiling" in record.getMessage()]


SOURCES = sorted(build.SOURCES.glob("*.c"))
FLAGS = build.FLAGS


def compiler_script(folder: Path, body: str) -> Path:
    script = folder / "cc"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o700)
    return script


def load() -> Any:
    """What the first call in a new process does."""
    return build._load.__wrapped__()


@needs_compiler
def test_compiles_once_announces_it_and_keeps_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library, reason = load()
    cache = tmp_path / "attn_plugins"
    assert reason is None and library.attention_forward and library.rows_forward
    assert len(announced()) == 1 and str(cache) in announced()[0]
    assert cache.stat().st_mode & 0o777 == 0o700
    files = [(path, path.stat().st_mtime_ns) for path in sorted(cache.iterdir())]
    assert [path.suffix for path, _ in files] == [".lock", ".so"] and load()[1] is None
    assert files == [(path, path.stat().st_mtime_ns) for path in sorted(cache.iterdir())] and len(announced()) == 1


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "damage",
    [
        "cut in the middle",
        "empty",
        *(pytest.param(damage, marks=pytest.mark.nightly) for damage in ("cut at 50", "cut at the end", "text")),
    ],
)
def test_a_damaged_library_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: Callable[[], list[str]], damage: str
) -> None:
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    # Not loaded before it is damaged: nobody changes a library under the feet of those who run it.
    path = build._cache_dir() / f"kernels-{build._key(build._compiler())}.so"
    subprocess.run([*build._compiler(), *build.flags(), *SOURCES, "-o", path, "-lm"], check=True)
    content = path.read_bytes()
    damaged = {
        "cut at 50": content[:50],
        "cut in the middle": content[: len(content) // 2],
        "cut at the end": content[:-1],
        "empty": b"",
        "text": b"#!/bin/sh\n",
    }
    path.write_bytes(damaged[damage])
    library, reason = load()
    assert reason is None and library.rows_forward and len(announced()) == 1
    assert path.stat().st_size == len(content)
    assert {file.name for file in path.parent.iterdir()} == {path.name, "build.lock"}


@needs_compiler
@pytest.mark.parametrize("what", ["folder", "pipe", "link", "other library", "open to others"])
def test_something_else_in_the_librarys_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_key", lambda compiler: "key")
    path = build._cache_dir() / "kernels-key.so"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(tmp_path)
    elif what == "open to others":
        path.touch()
        path.chmod(0o666)
    else:
        (tmp_path / "empty.c").write_text("int nothing;")
        subprocess.run([*build._compiler(), "-shared", "-fPIC", tmp_path / "empty.c", "-o", path], check=True)
    with pytest.warns(
        RuntimeWarning, match=r"kernels-key\.so (is (not a file|another library): remove it|\(chmod go-w it\))"
    ) as caught:
        assert load()[0] is None
    assert len(caught) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    folder = Path("/sys") if os.access(tmp_path, os.W_OK) else tmp_path  # root may write anywhere but there
    if not folder.is_dir() or (os.access(folder, os.W_OK) and os.getuid() != 0):
        pytest.skip("no folder that cannot be written")
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(folder))
    with pytest.warns(RuntimeWarning, match=r"set ATTN_PLUGINS_CACHE_DIR to a directory of your own, with room"):
        assert load()[0] is None


@needs_compiler
def test_a_full_disk_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", "/tmp")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.warns(RuntimeWarning, match="failed"):
            assert load()[0] is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["build.lock"]
    assert load()[1] is None


@pytest.mark.slow
@needs_compiler
def test_what_killed_builds_have_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    slow = compiler_script(tmp_path, 'case "$*" in *--version*) echo slow;; *) touch "$0.started"; sleep 30;; esac')
    code = "from attn_plugins.native import build; build._load()"
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "CC": str(slow)})
    while not slow.with_suffix(".started").exists():
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert list((tmp_path / "cache").glob("build-*/"))
    assert load()[1] is None
    assert not list((tmp_path / "cache").glob("build-*/"))


def test_messages_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    broken = compiler_script(tmp_path, "printf 'Datei nicht gefunden: \\344\\n' >&2; exit 1")
    monkeypatch.setenv("CC", str(broken))
    with pytest.warns(RuntimeWarning, match="Datei nicht gefunden"):
        assert load()[0] is None


@pytest.mark.slow
@needs_compiler
def test_a_compiler_in_a_folder_with_a_space_and_one_with_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "my tools").mkdir()
    compiler = compiler_script(tmp_path / "my tools", f'exec {shlex.quote(build._compiler()[0])} "$@"')
    for named in (str(compiler), f"{shlex.quote(str(compiler))} -O2"):
        monkeypatch.setenv("CC", named)
        assert load()[1] is None


def test_spaces_in_the_environments_path() -> None:
    maps = (
        "7f0000000000-7f0000001000 r-xp 00000000 fe:00 123      "
        "/home/me/my env/lib/python3.11/site-packages/torch/lib/libgomp.so.1\n"
        "7f0-7f1 r-xp 0 fe:00 1    /usr/lib/libgomp-a34b3233.so.1.0.0\n"
        "7f0-7f1 r-xp 0 fe:00 1    /home/me/old/libgomp.so.1 (deleted)\n"
        "7f0-7f1 r-xp 0 fe:00 1    /home/me/libgomp.so/other.txt\n"
        "7f0-7f1 rw-p 0 00:00 0 \n"
        "7f0-7f1 rw-p 0 00:00 0    [heap]\n"
    )
    assert build._openmp_runtimes(maps) == [
        "/home/me/my env/lib/python3.11/site-packages/torch/lib/libgomp.so.1",
        "/usr/lib/libgomp-a34b3233.so.1.0.0",
    ]


@needs_compiler
@pytest.mark.nightly  # in the ordinary tier: what is read of such a path
def test_torch_in_a_folder_with_a_space(tmp_path: Path) -> None:
    """Links to torch's files, and a copy of its OpenMP runtime, which is then loaded from there."""

    def copy(source: str, target: str) -> None:
        if "omp" in Path(source).name:
            shutil.copy(source, target)
        else:
            os.symlink(source, target)

    site = tmp_path / "my env" / "site-packages"
    site.mkdir(parents=True)
    for path in Path(torch.__file__).parents[1].iterdir():
        if path.name != "torch" and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    shutil.copytree(Path(torch.__file__).parent, site / "torch", copy_function=copy)
    code = (
        "import torch\n"
        "print(any('my env' in line and 'omp' in line for line in open('/proc/self/maps')))\n"
        "from attn_plugins import native\n"
        "print(native.unavailable())\n"
    )
    paths = os.pathsep.join([str(site), str(build.SOURCES.parents[1])])
    env = {**os.environ, "PYTHONPATH": paths, "ATTN_PLUGINS_CACHE_DIR": str(tmp_path / "my cache")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True", "None"], done.stderr


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="switches x86 instructions off")
@pytest.mark.parametrize("flag", [pytest.param("-mno-avx512f", marks=pytest.mark.nightly), "-mno-avx"])
def test_narrower_registers_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*FLAGS, flag))
    library, reason = load()
    assert reason is None
    q, k, v = (torch.randn(2, 2, 45, 10, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(3))

    def results(normalizer: str) -> tuple[Tensor, ...]:
        out = attention(q, k, v, is_causal=True, normalizer=normalizer, backend="cpu")
        return out, *torch.autograd.grad(out.square().sum(), (q, k, v))

    for normalizer in ("entmax15", "sparsemax", "entmax:alpha=1.25"):
        usual = results(normalizer)
        with monkeypatch.context() as patched:
            patched.setattr(kernel, "_library", lambda: kernel.declare(library))
            narrow = results(normalizer)
        for a, b in zip(usual, narrow, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_cache_that_others_may_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CC", sys.executable)
    with pytest.warns(RuntimeWarning, match=r"others may write .*set ATTN_PLUGINS_CACHE_DIR"):
        library, _ = load()
    assert library is None and not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_made_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        ("CC", "gcc 'unfinished", "CC=.* cannot be read .*No closing quotation"),
        ("CC", "  ", "CC='  ' is not a program"),
    ],
)
def test_a_missing_or_broken_compiler_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv(variable, value)
    with pytest.warns(RuntimeWarning, match=reason):
        assert load()[0] is None


def test_a_compiler_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow-cc"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o700)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setenv("ATTN_PLUGINS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "TIMEOUT", 0.2)
    with pytest.warns(RuntimeWarning, match="could not be run: .*timed out"):
        assert load()[0] is None
    assert not list(Path(tmp_path / "cache").glob("kernels*"))


@pytest.mark.slow
def test_without_a_compiler_plain_torch_gives_the_same(tmp_path: Path) -> None:
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
