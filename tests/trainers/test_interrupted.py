"""apply and revert, interrupted in every way: all files or none; and after kill -9, completed or reverted."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from helpers.faults import every_fault
from helpers.made_up_checkout import UPSTREAM, made_up

from attn_plugins import files
from attn_plugins.trainers import checkout
from attn_plugins.trainers.checkout import apply, revert, status

PATCH = made_up(4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for file in UPSTREAM:
        (tmp_path / file).parent.mkdir()
    clean(tmp_path)
    return tmp_path


def clean(root: Path) -> None:
    for left in root.rglob(".*"):
        left.unlink()
    for file, content in UPSTREAM.items():
        (root / file).write_bytes(content)


@pytest.mark.slow
def test_a_fault_at_any_call_or_line_leaves_all_or_nothing(root: Path) -> None:
    patch = made_up(2)

    def patched() -> None:
        clean(root)
        apply(patch, root)

    counts = {}
    for name, start, action in (
        ("apply", lambda: clean(root), lambda: apply(patch, root)),
        ("revert", patched, lambda: revert(patch, root)),
    ):
        counts[name] = 0
        for fault in every_fault(start, action, files, checkout):
            counts[name] += 1
            assert status(patch, root) in ("clean", "applied"), fault
    print("faults:", counts, "0 half done")
    assert all(count >= 200 for count in counts.values())


@pytest.mark.parametrize("failing", range(4))
def test_a_full_disk_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    from pathlib import Path

    write, count = Path.write_bytes, iter(range(100))

    def full(path: Path, content: bytes) -> int:
        if next(count) == failing:
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        apply(PATCH, root)
    monkeypatch.undo()
    assert status(PATCH, root) == "clean" and not list(root.rglob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [40, pytest.param(400, marks=pytest.mark.nightly)])
def test_after_kill_minus_9_it_can_be_completed_and_reverted(root: Path, kills: int) -> None:
    half = 0
    for number in range(kills):
        ready, go = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(go, b"x")
                while True:
                    apply(PATCH, root)
                    revert(PATCH, root)
            finally:
                os._exit(1)  # not back into pytest
        os.read(ready, 1)
        time.sleep(random.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(go)
        half += status(PATCH, root) == "half applied"
        (apply, revert)[number % 2](PATCH, root)
        assert status(PATCH, root) == ("applied", "clean")[number % 2]
        assert not list(root.rglob(".*"))
    print(f"{kills} kills -9: {half} left half applied, all completed or reverted")
    assert half
