"""The diffs in ``patches/``: lines to insert into upstream's files, and the git blob ids of those files.

They carry none of upstream's lines, so where a line goes is known from the line number alone. That is sound only on
the very file that the diff was made for. Taking lines out again needs no number: they are found by what they say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..shipped import shipped

__all__ = ["PATCHES", "ApplyError", "Patch", "available", "load"]

PATCHES = shipped("patches", "manifest.json")


class ApplyError(ValueError):
    """A checkout that a patch does not fit; nothing in it was changed."""


@dataclass(frozen=True)
class Patch:
    """One trainer's patch.

    Attributes:
        name: as ``dino``.
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
        """Upstream's file with the lines in it."""
        lines = upstream.splitlines(keepends=True)
        for line, inserted in reversed(self.insertions[file]):
            lines[line:line] = inserted
        return b"".join(lines)

    def remove(self, file: str, patched: bytes) -> bytes:
        """The file without the lines, wherever they have moved; ``holds`` must be true of it."""
        lines, start = patched.splitlines(keepends=True), 0
        for _, inserted in self.insertions[file]:
            start = _find(lines, inserted, start)
            del lines[start : start + len(inserted)]
        return b"".join(lines)

    def holds(self, file: str, content: bytes) -> bool | None:
        """Whether the lines are in ``content``, all (True) or none (False); None if some are."""
        lines = content.splitlines(keepends=True)
        starts = [_find(lines, inserted, 0) for _, inserted in self.insertions[file]]
        if all(start < 0 for start in starts):
            return False
        start = 0
        for _, inserted in self.insertions[file]:
            start = _find(lines, inserted, start)
            if start < 0:
                return None
            start += len(inserted)
        return True


def available() -> list[str]:
    """Names of the trainers that there is a patch for."""
    return sorted(json.loads((PATCHES / "manifest.json").read_text()))


def load(name: str) -> Patch:
    """The patch called ``name``.

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


def _find(lines: list[bytes], wanted: list[bytes], start: int) -> int:
    """Index from ``start`` on at which the lines stand, however indented and ended; -1 if nowhere."""
    stripped, goal = [line.strip() for line in lines], [line.strip() for line in wanted]
    places = range(start, len(lines) - len(goal) + 1)
    return next((at for at in places if stripped[at : at + len(goal)] == goal), -1)
