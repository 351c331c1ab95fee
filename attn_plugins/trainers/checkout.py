"""Put the trainers' ``--attn_plugins`` flag into an official checkout, and take it out again.

Each file is looked at by itself: it is upstream's, it has our lines, or it is foreign. So a checkout that a killed
process left half changed can be completed or reverted like any other.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..files import remove_abandoned, replace_together
from .insertions import ApplyError, Patch

__all__ = ["apply", "revert", "status"]

UPSTREAM, PATCHED, FOREIGN = "upstream's", "patched", "foreign"


def status(patch: Patch, root: Path) -> str:
    """``clean`` (the upstream files), ``applied`` or ``half applied``; only the files that the patch touches matter.

    Raises:
        ApplyError: some file is neither upstream's nor patched, with each file's reason and the remedy.
    """
    states = {file: _state(patch, root, file) for file in patch.before}
    _require(patch, root, [file for file, state in states.items() if state not in (UPSTREAM, PATCHED)])
    if PATCHED not in states.values():
        return "clean"
    return "half applied" if UPSTREAM in states.values() else "applied"


def apply(patch: Patch, root: Path, *, three_way: bool = False) -> list[str]:
    """Insert the patch's lines into the files that lack them; all files or none.

    Args:
        patch: from ``insertions.load``.
        root: the checkout.
        three_way: on files that differ from upstream, merge (``git merge-file``) instead of refusing.

    Returns:
        The files that were changed; none if the patch is there already.

    Raises:
        ApplyError: the checkout is not the upstream commit, or the merge has conflicts.
        OSError: a file cannot be written; none was changed.
    """
    states = {file: _state(patch, root, file) for file in patch.before}
    foreign = [file for file, state in states.items() if state not in (UPSTREAM, PATCHED)]
    if not three_way:
        _require(patch, root, foreign)
    contents = {
        file: patch.insert(file, (root / file).read_bytes()) for file, state in states.items() if state == UPSTREAM
    }
    return _write(patch, root, contents | _merged(patch, root, foreign, to_patched=True))


def revert(patch: Patch, root: Path, *, three_way: bool = False) -> list[str]:
    """Take the patch's lines out of the files that have them, whatever else was changed there; all files or none.

    Arguments and errors as ``apply``; a file that has some of the lines, changed, is refused without ``three_way``.
    """
    states = {file: _state(patch, root, file) for file in patch.before}
    damaged = [file for file, state in states.items() if state not in (UPSTREAM, PATCHED, FOREIGN)]
    if not three_way:
        _require(patch, root, damaged)
    contents = {
        file: patch.remove(file, (root / file).read_bytes()) for file, state in states.items() if state == PATCHED
    }
    return _write(patch, root, contents | _merged(patch, root, damaged, to_patched=False))


def _state(patch: Patch, root: Path, file: str) -> str:
    """UPSTREAM, PATCHED (perhaps with changes of the user's), FOREIGN (without our lines), or what is wrong.

    Raises:
        ApplyError: the file is a link, or its folder is one that leads out of the checkout.
    """
    path = root / file
    if path.is_symlink() or not path.resolve().is_relative_to(root.resolve()):
        raise ApplyError(f"{path} is a link to {path.resolve()}, through which nothing is written: name that checkout")
    if not path.is_file():
        return "missing"
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if blob == patch.before[file]:
        return UPSTREAM
    if blob == patch.after[file]:
        return PATCHED
    held = patch.holds(file, content)
    if held is None:
        return "has some of the lines of the patch and lacks others"
    return PATCHED if held else FOREIGN


def _require(patch: Patch, root: Path, refused: list[str]) -> None:
    if not refused:
        return
    reasons = [f"  {file}: {_reason(patch, root, file)}" for file in refused]
    raise ApplyError(
        f"{root} is not {patch.repository} at {' or '.join(commit[:12] for commit in patch.commits)}:\n"
        + "\n".join(reasons)
        + f"\nCheck out one of those commits, or let git merge with: attn-plugins apply {patch.name} {root} --3way"
    )


def _reason(patch: Patch, root: Path, file: str) -> str:
    state = _state(patch, root, file)
    if state != FOREIGN:
        return state
    changed = _git(root, "status", "--porcelain", "--", file)
    if changed.returncode == 0 and changed.stdout.strip():
        return "has uncommitted changes (git diff shows them)"
    return f"is another version (expected blob {patch.before[file][:12]})"


def _merged(patch: Patch, root: Path, files: list[str], *, to_patched: bool) -> dict[str, bytes]:
    """The files with the difference between upstream's and ours merged in; the checkout's history has upstream's."""
    merged, conflicts = {}, []
    for file in files:
        path = root / file
        shown = _git(root, "cat-file", "blob", patch.before[file])
        if shown.returncode != 0 or not path.is_file():
            raise ApplyError(
                f"--3way needs upstream's {file} (blob {patch.before[file][:12]}) in the history of {root}, and the "
                f"file itself: use a git clone of {patch.repository}"
            )
        upstream, ours = shown.stdout, patch.insert(file, shown.stdout)
        base, goal = (upstream, ours) if to_patched else (ours, upstream)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in (("base", base), ("goal", goal)):
                (Path(folder) / name).write_bytes(content)
            result = _git(root, "merge-file", "-p", str(path.resolve()), f"{folder}/base", f"{folder}/goal")
        if result.returncode != 0:
            conflicts.append(file)
        merged[file] = result.stdout
    if conflicts:
        raise ApplyError(f"git cannot merge {', '.join(conflicts)} in {root}: conflicts. Nothing was changed.")
    return merged


def _write(patch: Patch, root: Path, contents: dict[str, bytes]) -> list[str]:
    for file in patch.before:
        remove_abandoned(root / file)
    changed = {file: new for file, new in contents.items() if new != (root / file).read_bytes()}
    replace_together({root / file: content for file, content in changed.items()})
    return list(changed)


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    git = shutil.which("git")
    if git is None:
        return subprocess.CompletedProcess(arguments, 127, b"", b"git is not installed")
    where = root if root.is_dir() else Path.cwd()
    return subprocess.run([git, *arguments], cwd=where, capture_output=True, check=False)
