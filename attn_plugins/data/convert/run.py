"""Carry out a conversion: every file whole or not there, and the same command goes on where it was interrupted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from attn_plugins.data.convert.plan import Converter, Link, Options, Plan, Write, inside
from attn_plugins.files import read_json, write_bytes, write_text, written
from attn_plugins.progress import Progress

__all__ = ["MANIFEST", "Done", "carry_out", "unfinished"]

MANIFEST = ".converted.json"

# Raise when a change makes the same source give other files: an older OUT is then not continued.
FORMAT = 1
_BLOCK = 1 << 20
# Where a file cannot be given a second name: another disk, a file system without hard links, one that has its most.
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@dataclass
class Done:
    """How many files of OUT were linked, copied and written, and how many were there from an earlier run."""

    linked: int = 0
    copied: int = 0
    written: int = 0
    there: int = 0

    def __str__(self) -> str:
        told = ", ".join(f"{count:,} {what}" for what, count in asdict(self).items() if what != "there")
        return f"{told}, {self.there:,} were there"


def unfinished(root: Path) -> str | None:
    """The source of a conversion into ``root`` that was not brought to its end; None where there is none.

    Raises:
        ValueError: what a conversion left in ``root`` is no readable JSON.
    """
    if not (root / MANIFEST).is_file():
        return None
    found = read_json(root / MANIFEST)
    return None if found.get("complete") else str(found.get("source"))


def carry_out(
    converter: Converter, plan: Plan, source: Path, out: Path, options: Options, progress: Progress | None = None
) -> Done:
    """Write ``plan`` into ``out``. One process at a time does; another waits, and then finds the files there.

    Args:
        converter: what made the plan.
        plan: the files.
        source: what the user named.
        out: a folder that is empty, not there, or holds an earlier run of the same conversion.
        options: what the user said.
        progress: called with (done, total) after each file.

    Raises:
        FileExistsError: ``out`` holds anything else. Nothing was changed.
        ValueError: a file cannot be read or written; it is named, and those before it stay.
    """
    out = out.absolute()
    wanted = {
        "converter": converter.name,
        "format": FORMAT,
        "source": str(source.resolve()),
        "options": {name: str(value) for name, value in asdict(options).items() if value},
        "files": {str(path.resolve()): _digest(path) for path in plan.decided_by},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")):  # the system lets go of it when its process dies
        _claim(out, wanted)
        done = _write_all(plan, out, progress)
        write_text(out / MANIFEST, json.dumps({**wanted, "complete": True}, indent=1) + "\n")
    return done


def _claim(out: Path, wanted: dict[str, Any]) -> None:
    """Make ``out`` this conversion's, or see that it is."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: choose a folder that is not there yet")
    manifest = out / MANIFEST
    if manifest.is_file():
        found = read_json(manifest)
        keys = [key for key in wanted if found.get(key) != wanted[key]]
        if keys:
            told = ", ".join(f"{key}={found.get(key)!r} there, {wanted[key]!r} now" for key in keys)
            raise FileExistsError(
                f"{out} was converted from something else ({told}): choose another folder, nothing was changed"
            )
        if not found.get("complete"):
            for left in out.rglob(".*.partial"):  # the lock is ours, so whoever was writing it is dead
                left.unlink()
        return
    if out.exists() and any(not path.name.endswith(".partial") for path in out.iterdir()):
        raise FileExistsError(f"{out} holds files that no conversion wrote: choose another folder, nothing was changed")
    out.mkdir(exist_ok=True)
    write_text(manifest, json.dumps({**wanted, "complete": False}, indent=1) + "\n")


def _write_all(plan: Plan, out: Path, progress: Progress | None) -> Done:
    done, made = Done(), set[Path]()
    for number, item in enumerate(plan.items, 1):
        _write(item, _place(item.target, out, made), done)
        if progress is not None:
            progress(number, plan.total)
    for target, text in plan.lists.items():
        _write(Write(target, text.encode), _place(target, out, made), done)
    return done


def _place(target: str, out: Path, made: set[Path]) -> Path:
    path = out / inside(target, out)
    if path.parent not in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.add(path.parent)
    return path


def _write(item: Link | Write, path: Path, done: Done) -> None:
    if path.exists():
        done.there += 1
        return
    try:
        if isinstance(item, Link):
            _link(item.source, path, done)
        else:
            write_bytes(path, item.content())
            done.written += 1
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}; once that is mended, the same command goes on") from error


def _link(source: str, path: Path, done: Done) -> None:
    try:
        os.link(os.path.realpath(source), path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with written(path) as partial:
            shutil.copyfile(source, partial)
        done.copied += 1
    else:
        done.linked += 1


def _digest(path: Path) -> str:
    """Of a file's size, its first and its last MiB: tells apart what ships, at no cost for one of gigabytes."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_BLOCK))
        file.seek(max(0, size - _BLOCK))
        digest.update(file.read(_BLOCK))
    return digest.hexdigest()
