"""Write a file whole or not at all: a reader, a full disk or a killed job never leaves half of one. Read small ones."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "read_json",
    "read_lines",
    "remove_abandoned",
    "replace_together",
    "require_plain",
    "sha256",
    "write_bytes",
    "write_text",
    "written",
]


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Lines of a text file, which a split file or a list of labels is.

    Raises:
        ValueError: it cannot be read, or is no UTF-8; it is named.
    """
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable text in UTF-8: {error}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Contents of a JSON file.

    Raises:
        ValueError: it cannot be read, or is no JSON; it is named.
    """
    try:
        return json.loads(Path(path).read_bytes())
    # ValueError: no JSON, no UTF-8, or a number of thousands of digits; RecursionError: thousands of brackets.
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no readable JSON: {type(error).__name__} {error}") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Digest of a file's contents, in hexadecimal; the file is never whole in memory."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the place of ``path`` when the context ends without an exception.

    With any exception, Ctrl-C included, ``path`` stays what it was and nothing is left beside it. A file that is there
    keeps its mode. A killed process leaves at most a hidden ``.NAME.*.partial``.

    Raises:
        FileExistsError: ``path`` is a link, a folder, a device or a pipe, of which nothing is replaced.
        OSError: the folder is missing or cannot be written.
    """
    path = Path(path)
    require_plain(path)
    with _beside(path) as partial:
        yield partial
        partial.replace(path)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path``; errors as ``written``."""
    with written(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, line ends as they are; errors as ``written``."""
    write_bytes(path, text.encode())


def replace_together(contents: Mapping[Path, bytes]) -> None:
    """Give files that are there new contents: all of them, or none if there is an exception, Ctrl-C included.

    New and old contents are both on the disk before the first file changes, so that a full one undoes nothing half.
    A killed process can leave some files old and some new, each whole, and others beside them, which
    ``remove_abandoned`` removes.

    Raises:
        FileExistsError: one of them is a link, a folder, a device or a pipe.
        OSError: one of them is missing, or its folder cannot be written.
    """
    for path in contents:
        require_plain(path)
    with ExitStack() as stack:
        staged = []
        for path, content in contents.items():
            new, old = stack.enter_context(_beside(path)), stack.enter_context(_beside(path))
            new.write_bytes(content)
            old.write_bytes(path.read_bytes())
            staged.append((path, new, old))
        try:
            for path, new, _ in staged:
                new.replace(path)
        except BaseException:
            for path, _, old in staged:  # those that had not been replaced too: which they are cannot be known
                old.replace(path)
            raise


def require_plain(path: Path) -> None:
    """Refuse a path that is there and is not a regular file of its own.

    Raises:
        FileExistsError: it is a link, a folder, a device or a pipe.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise FileExistsError(f"{path} is a link to {os.readlink(path)}: name that file itself, or remove the link")
    if not stat.S_ISREG(mode):
        raise FileExistsError(f"{path} is there and is not a regular file: choose another name, or remove it")


def remove_abandoned(path: Path) -> None:
    """Remove what processes of this machine that are no more have left beside ``path``."""
    for partial in path.parent.glob(f".{glob.escape(path.name[:40])}.*-*.partial"):
        left = re.fullmatch(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.partial", partial.name[1 + len(path.name[:40]) :])
        if left and left[1] == _machine() and not _runs(int(left[2])):
            partial.unlink(missing_ok=True)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new file beside ``path``, of its mode; it is removed at the end if it is still there."""
    # What mkstemp does, but the name is known before there is a file: an interrupt in between leaves nothing behind.
    partial = path.with_name(f".{path.name[:40]}.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.partial")
    try:
        partial.touch(exist_ok=False)
        if path.exists():
            shutil.copymode(path, partial)
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _machine() -> str:
    """Process numbers are this machine's; the folder may be shared with others."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    if os.name == "nt":
        return True  # os.kill would end the process that it is asked about
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
