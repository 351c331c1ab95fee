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
import struct
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
    # Without these two, square roots and comparisons are not vectorised. NaN and infinity keep their meaning.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-shared",
)
SOURCES = Path(__file__).parent
TIMEOUT = 60  # seconds; a build takes about one
SYMBOLS = ("attention_forward", "attention_backward", "rows_forward", "rows_backward")

logger = logging.getLogger(__name__)


class _BuildError(RuntimeError):
    """Why there are no kernels, and what to do about it."""


def load() -> ctypes.CDLL:
    """The library of kernels, compiled if this machine has not compiled it yet.

    Raises:
        RuntimeError: it cannot be had; ask ``unavailable`` first.
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
        _share_openmp()
        library = _cached_library()
    except _BuildError as error:
        warnings.warn(
            f"attn_plugins runs on plain torch on this CPU, several times slower than with its kernels: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None, str(error)
    return library, None


def _share_openmp() -> None:
    """One OpenMP runtime for torch and the kernels: two would each keep their threads spinning on the same cores.

    Wheels rename theirs, so the linker would not see that it is the same; made global, its symbols come first.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    runtimes = _openmp_runtimes(os.fsdecode(maps.read_bytes()))
    try:
        for runtime in sorted(runtimes, key=lambda name: "torch" not in name)[:1]:
            ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise _BuildError(f"torch's OpenMP runtime cannot be shared ({error}); start Python again") from error


def _openmp_runtimes(maps: str) -> list[str]:
    """Files of OpenMP runtimes in ``/proc/self/maps``, whose sixth column is a path, spaces and all."""
    paths = {columns[5] for line in maps.splitlines() if len(columns := line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if re.search(r"/lib(gomp|iomp5|omp)\b[^/]*\.so[^/ ]*$", path))


def flags() -> tuple[str, ...]:
    """What the compiler is told: for this CPU, or the one that ``ATTN_PLUGINS_MARCH`` names as ``-march`` does.

    Raises:
        RuntimeError: the variable holds no such name.
    """
    march = os.environ.get("ATTN_PLUGINS_MARCH") or "native"
    if not re.fullmatch(r"[\w.+-]+", march):
        raise _BuildError(f"ATTN_PLUGINS_MARCH={march!r} names no CPU; unset it, or give one of gcc's, such as haswell")
    return (*FLAGS, f"-march={march}")


def _cached_library() -> ctypes.CDLL:
    if not hasattr(os, "getuid"):  # that nobody else may write the cache cannot be seen
        raise _BuildError("they are built on Linux and macOS alone")
    compiler = _compiler()
    folder = _cache_dir()
    path = folder / f"kernels-{_key(compiler)}.so"
    try:
        if (library := _open(path)) is None:
            from filelock import FileLock  # torch requires it; imported where there is something to lock

            with FileLock(folder / "build.lock", timeout=2 * TIMEOUT):
                library = _open(path) or _build(compiler, path)  # another process may have built it by now
    except OSError as error:
        raise _BuildError(f"{error}; set ATTN_PLUGINS_CACHE_DIR to a directory of your own, with room") from error
    return library


def _open(path: Path) -> ctypes.CDLL | None:
    """The library in a file; None if there is none, or half of one.

    Raises:
        OSError: something else is there.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise FileExistsError(f"{path} is not a file: remove it")
    _check_private(path)
    try:
        if not _whole(path):
            return None
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    if not all(hasattr(library, name) for name in SYMBOLS):
        raise FileExistsError(f"{path} is another library: remove it")
    return library


def _whole(path: Path) -> bool:
    """Whether an ELF file goes on to the end of its last table: loading a truncated one would crash the process."""
    with path.open("rb") as file:
        header = file.read(64)
    if not header.startswith(b"\x7fELF\x02\x01"):
        return True  # or not ELF, of 64 bits, little-endian: left to the loader
    if len(header) < 64:
        return False
    (start,), (size, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
    return path.stat().st_size >= int(start + size * count)


def _build(compiler: list[str], path: Path) -> ctypes.CDLL:
    """Compile and load; the caller holds the lock, so what other builds have left there is of killed ones."""
    for left in path.parent.glob("build-*/"):
        shutil.rmtree(left, ignore_errors=True)
    started = time.perf_counter()
    # A warning in rank, so that a wait of a second is explained where no logging is set up.
    logger.warning("compiling attention kernels for this CPU (a few seconds, once; kept in %s)", path)
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        _run([*compiler, *flags(), *map(str, sorted(SOURCES.glob("*.c"))), "-o", str(built), "-lm"])
        built.chmod(0o700)
        built.replace(path)
    logger.info("compiled in %.1f s", time.perf_counter() - started)
    library = _open(path)
    if library is None:
        raise _BuildError(f"what {shlex.join(compiler)} made of the kernels does not load; set CC to another compiler")
    return library


def _compiler() -> list[str]:
    named = os.environ.get("CC")
    try:
        commands = [[named], shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]
    except ValueError as error:
        raise _BuildError(f"CC={named!r} cannot be read ({error}); quote it as in a shell") from error
    for command in commands:
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
    parts = [*compiler, *flags(), _version(compiler), platform.machine(), features.group() if features else ""]
    parts += [path.name + path.read_text("utf-8") for path in sorted(SOURCES.glob("*.[ch]"))]
    return hashlib.sha256(os.fsencode("\0".join(parts))).hexdigest()[:16]


def _version(compiler: list[str]) -> str:
    return _run([*compiler, "--version"])


def _run(command: list[str]) -> str:
    try:
        # Compilers write in the user's language and encoding.
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT, check=True
        )
    except subprocess.CalledProcessError as error:
        raise _BuildError(f"{shlex.join(command)} failed:\n{error.stderr.strip()}") from error
    except (subprocess.TimeoutExpired, OSError) as error:
        raise _BuildError(f"the compiler could not be run: {error}; set CC to one that works") from error
    return done.stdout
