"""Write a file whole or not at all: a reader, a full disk or a killed job never leaves half of one."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["require_plain", "write_bytes", "write_text", "written"]


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the context ends without an exception.

    With any exception, Ctrl-C included, `path` stays what it was and nothing is left beside it. A file that is there
    keeps its mode. A killed process leaves at most a hidden `.NAME.*.partial`.

    Raises:
        FileExistsError: `path` is a link, a folder, a device or a pipe, of which nothing is replaced.
        OSError: the folder is missing or cannot be written.
    """
    path = Path(path)
    require_plain(path)
    # What mkstemp does, but the name is known before there is a file: an interrupt in between leaves nothing behind.
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
    try:
        partial.touch(exist_ok=False)
        if path.exists():
            shutil.copymode(path, partial)
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path`; errors as :func:`written`."""
    with written(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8, line ends as they are; errors as :func:`written`."""
    write_bytes(path, text.encode())


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
