"""Compile the C files next to this one with the system's compiler, cache the library, load it.

The library lands in ``$ATTN_PLUGINS_CACHE_DIR``, or ``$XDG_CACHE_HOME/attn_plugins``, or
``~/.cache/attn_plugins``, under a name made of everything that it depends on: sources, compiler, flags, CPU.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import torch  # noqa: F401 - loads the OpenMP runtime that the kernels share

__all__ = ["load", "unavailable"]

FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    # Without these two, square roots and comparisons are not vectorised. NaN and infinity keep their meaning.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-shared",
)
SOURCES = Path(__file__).parent
TIMEOUT = 60  # seconds; a build takes about one
DIGEST = hashlib.sha256().digest_size

logger = logging.getLogger(__name__)


class _BuildError(RuntimeError):
    """Why there are no kernels, and what to do about it."""


def load() -> ctypes.CDLL:
    """The library of kernels, compiled if this machine has not compiled it yet.

    Raises:
        RuntimeError: it cannot be had; ask :func:`unavailable` first.
    """
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"the CPU kernels are not available: {reason}")
    return library


def unavailable() -> str | None:
    """Why the kernels cannot be used here (the first call warns about it), or None."""
    return _load()[1]


# What torch.compiler.assume_constant_result sets; calling that would import all of dynamo with this package.
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        library = _open(_cached_library())
    except _BuildError as error:
        warnings.warn(
            f"attn_plugins runs on plain torch on this CPU, several times slower than with its kernels: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None, str(error)
    return library, None


def _open(path: Path) -> ctypes.CDLL:
    # One OpenMP runtime for torch and the kernels: two would each keep their threads spinning on the same cores.
    # Wheels rename theirs, so the linker would not see that it is the same; made global, its symbols come first.
    maps = Path("/proc/self/maps")
    if maps.exists():
        runtimes = re.findall(r"/\S*/lib(?:gomp|iomp5|omp)\b\S*\.so\S*", maps.read_text())
        for runtime in sorted(set(runtimes), key=lambda name: "torch" not in name)[:1]:
            ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise _BuildError(f"the compiled {path} does not load ({error}); delete it to build it again") from error


def _cached_library() -> Path:
    compiler = _compiler()
    path = _cache_dir() / f"kernels-{_key(compiler)}.so"
    if not _intact(path):
        started = time.perf_counter()
        # A warning in rank, so that a wait of a second is explained where no logging is set up.
        logger.warning("compiling attention kernels for this CPU (a few seconds, once; kept in %s)", path)
        _compile(compiler, path)
        logger.info("compiled in %.1f s", time.perf_counter() - started)
    return path


def _compiler() -> list[str]:
    named = os.environ.get("CC")
    for command in [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]:
        if command and (found := shutil.which(command[0])):
            return [found, *command[1:]]
    missing = f"CC={named!r} is not a program" if named else "there is no C compiler (cc, gcc or clang) in PATH"
    raise _BuildError(f"{missing}; install one (apt-get install gcc) or set CC")


def _cache_dir() -> Path:
    """The cache directory, which nobody else may write: a library from it runs with the user's rights."""
    named = os.environ.get("ATTN_PLUGINS_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        path = Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "attn_plugins"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(path)
    except (OSError, RuntimeError) as error:
        raise _BuildError(f"{error}; set ATTN_PLUGINS_CACHE_DIR to a directory of your own") from error
    return path


def _check_private(path: Path) -> None:
    status = path.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to user {status.st_uid}, not to {os.getuid()}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others may write {path} (chmod go-w it)")


def _key(compiler: list[str]) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    features = re.search(r"^(?:flags|Features)\s*:.*$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    parts = [*compiler, *FLAGS, _version(compiler), platform.machine(), features.group() if features else ""]
    parts += [path.name + path.read_text() for path in sorted(SOURCES.glob("*.[ch]"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _version(compiler: list[str]) -> str:
    return _run([*compiler, "--version"])


def _intact(path: Path) -> bool:
    """Whether ``path`` ends with the digest of what precedes it: a truncated library would crash the process."""
    if not path.exists():
        return False
    _check_private(path)
    content = path.read_bytes()
    return hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]


def _compile(compiler: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        _run([*compiler, *FLAGS, *map(str, sorted(SOURCES.glob("*.c"))), "-o", str(built), "-lm"])
        with built.open("ab") as file:  # what follows an ELF file's sections is ignored when it is loaded
            file.write(hashlib.sha256(built.read_bytes()).digest())
        built.chmod(0o700)
        built.replace(path)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except subprocess.CalledProcessError as error:
        raise _BuildError(f"{shlex.join(command)} failed:\n{error.stderr.strip()}") from error
    except (subprocess.TimeoutExpired, OSError) as error:
        raise _BuildError(f"the compiler could not be run: {error}; set CC to one that works") from error
    return done.stdout
