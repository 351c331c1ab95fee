"""Put the trainers' `--attn_plugins` flag into an official checkout, and take it out again.

The diffs in `patches/` only insert lines and carry none of upstream's, so where a line goes is known from the line
number alone. That is sound only on the very file that the diff was made for: every file is recognised by its git blob
id before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..shipped import shipped

__all__ = ["ApplyError", "Patch", "apply", "available", "load", "revert", "status"]

PATCHES = shipped("patches", "manifest.json")


class ApplyError(ValueError):
    """A checkout that a patch does not fit; nothing in it was changed."""


@dataclass(frozen=True)
class Patch:
    """One trainer's patch.

    Attributes:
        name: as `dino`.
        repository: upstream's address.
        commits: the upstream commits that it was made for.
        before: {file: git blob id} upstream.
        after: {file: git blob id} with the lines inserted.
        insertions: {file: [(upstream line that they follow, lines)]}, in order.
    """

    name: str
    repository: str
    commits: tuple[str, ...]
    before: Mapping[str, str]
    after: Mapping[str, str]
    insertions: Mapping[str, list[tuple[int, list[bytes]]]]

    def insert(self, file: str, upstream: bytes) -> bytes:
        lines = upstream.splitlines(keepends=True)
        for line, inserted in reversed(self.insertions[file]):
            lines[line:line] = inserted
        return b"".join(lines)

    def remove(self, file: str, patched: bytes) -> bytes:
        lines = patched.splitlines(keepends=True)
        for line, inserted in self.insertions[file]:
            del lines[line : line + len(inserted)]
        return b"".join(lines)


def available() -> list[str]:
    """Names of the trainers that there is a patch for."""
    return sorted(json.loads((PATCHES / "manifest.json").read_text()))


def load(name: str) -> Patch:
    """The patch called `name`.

    Raises:
        ApplyError: there is none.
    """
    entry = json.loads((PATCHES / "manifest.json").read_text()).get(name)
    if entry is None:
        raise ApplyError(f"no patch for {name!r}; there is one for: {', '.join(available())}")
    return Patch(
        name=name,
        repository=entry["repository"],
        commits=tuple(entry["commits"]),
        before={file: ids["before"] for file, ids in entry["files"].items()},
        after={file: ids["after"] for file, ids in entry["files"].items()},
        insertions=_insertions((PATCHES / entry["patch"]).read_bytes()),
    )


def status(patch: Patch, root: Path) -> str:
    """`clean` (the upstream files) or `applied`; the files that the patch touches decide, others do not matter.

    Raises:
        ApplyError: neither, with every file's reason and the remedy.
    """
    ids = {file: _blob_id(root / file) for file in patch.before}
    if ids == patch.before:
        return "clean"
    if ids == patch.after:
        return "applied"
    reasons = [
        f"  {file}: {_reason(patch, root, file, found)}"
        for file, found in ids.items()
        if found not in (patch.before[file], patch.after[file])
    ] or ["  some files have the patch and some have not"]
    raise ApplyError(
        f"{root} is not {patch.repository} at {' or '.join(commit[:12] for commit in patch.commits)}:\n"
        + "\n".join(reasons)
        + f"\nCheck out one of those commits, or let git merge with: attn-plugins apply {patch.name} {root} --3way"
    )


def apply(patch: Patch, root: Path, *, three_way: bool = False) -> list[str]:
    """Insert the patch's lines; all files or none.

    Args:
        patch: from `load`.
        root: the checkout.
        three_way: on files that differ from upstream, merge (`git merge-file`) instead of refusing.

    Returns:
        The files that were changed; none if the patch is there already.

    Raises:
        ApplyError: the checkout is not the upstream commit, or the merge has conflicts.
    """
    return _change(patch, root, "applied", patch.insert, three_way)


def revert(patch: Patch, root: Path, *, three_way: bool = False) -> list[str]:
    """Take the patch's lines out again; arguments and errors as `apply`."""
    return _change(patch, root, "clean", patch.remove, three_way)


def _change(patch: Patch, root: Path, goal: str, edit: Callable[[str, bytes], bytes], three_way: bool) -> list[str]:
    try:
        if status(patch, root) == goal:
            return []
        contents = {file: edit(file, (root / file).read_bytes()) for file in patch.before}
    except ApplyError:
        if not three_way:
            raise
        contents = _merged(patch, root, to_patched=goal == "applied")
    changed = [file for file, new in contents.items() if new != (root / file).read_bytes()]
    _write_all(root, {file: contents[file] for file in changed})
    return changed


def _merged(patch: Patch, root: Path, *, to_patched: bool) -> dict[str, bytes]:
    """Each file with the difference between upstream's and ours merged in; the checkout's history has upstream's."""
    merged, conflicts = {}, []
    for file, blob in patch.before.items():
        shown = _git(root, "cat-file", "blob", blob)
        if shown.returncode != 0 or not (root / file).is_file():
            raise ApplyError(
                f"--3way needs upstream's {file} (blob {blob[:12]}) in the history of {root}, and the file itself: "
                f"use a git clone of {patch.repository}"
            )
        upstream, ours = shown.stdout, patch.insert(file, shown.stdout)
        base, goal = (upstream, ours) if to_patched else (ours, upstream)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in (("base", base), ("goal", goal)):
                (Path(folder) / name).write_bytes(content)
            sides = (str((root / file).resolve()), f"{folder}/base", f"{folder}/goal")
            result = _git(root, "merge-file", "-p", *sides)
        if result.returncode != 0:
            conflicts.append(file)
        merged[file] = result.stdout
    if conflicts:
        raise ApplyError(f"git cannot merge {', '.join(conflicts)} in {root}: conflicts. Nothing was changed.")
    return merged


def _write_all(root: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files one by one from complete copies; if one fails, those before it get their old contents back."""
    old = {file: (root / file).read_bytes() for file in contents}
    done: list[str] = []
    try:
        for file, content in contents.items():
            _replace(root / file, content)
            done.append(file)
    except OSError:
        for file in done:
            _replace(root / file, old[file])
        raise


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(path.name + ".attn_plugins")
    try:
        new.write_bytes(content)
        shutil.copymode(path, new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _reason(patch: Patch, root: Path, file: str, found: str | None) -> str:
    if found is None:
        return "missing"
    changed = _git(root, "status", "--porcelain", "--", file)
    if changed.returncode == 0 and changed.stdout.strip():
        return "has uncommitted changes (git diff shows them)"
    return f"is another version (blob {found[:12]}, expected {patch.before[file][:12]})"


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    git = shutil.which("git")
    if git is None:
        return subprocess.CompletedProcess(arguments, 127, b"", b"git is not installed")
    where = root if root.is_dir() else Path.cwd()
    return subprocess.run([git, *arguments], cwd=where, capture_output=True, check=False)


def _blob_id(path: Path) -> str | None:
    """What git calls the file's content; None if there is no such file."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _insertions(diff: bytes) -> dict[str, list[tuple[int, list[bytes]]]]:
    """Parse an insertion-only, zero-context diff."""
    found: dict[str, list[tuple[int, list[bytes]]]] = {}
    for line in diff.splitlines(keepends=True):
        if line.startswith(b"+++ b/"):
            hunks = found.setdefault(line[6:].decode().strip(), [])
        elif hunk := re.match(rb"@@ -(\d+),0 \+", line):
            hunks.append((int(hunk[1]), []))
        elif line.startswith(b"+"):
            hunks[-1][1].append(line[1:])
    return found
