"""Files are written whole or not at all, whatever fails on the way."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.faults import every_fault

from attn_plugins import files
from attn_plugins.files import write_bytes, write_text, written


def test_it_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with written(path) as partial:
        partial.write_text("new")
        assert not path.exists() and partial.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_the_mode_is_the_old_files_or_the_umasks(tmp_path: Path) -> None:
    path = tmp_path / "script.sh"
    before = os.umask(0o027)
    try:
        write_text(path, "one")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o755)
    write_text(path, "two")
    assert path.stat().st_mode & 0o777 == 0o755 and path.read_text() == "two"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_exception_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(type(error)), written(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_links_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    (outside := tmp_path / "outside").write_text("theirs")
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in ("link", "dangling"):
        with pytest.raises(FileExistsError, match="is a link to"):
            write_text(tmp_path / name, "ours")
    for name in ("folder", "pipe"):
        with pytest.raises(FileExistsError, match="not a regular file"):
            write_text(tmp_path / name, "ours")
    assert outside.read_text() == "theirs" and sorted(path.name for path in tmp_path.iterdir()) == names


def test_long_names(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120)
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


def test_a_fault_at_any_call_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "result.json"

    def start() -> None:
        path.write_text("old")

    faults = 0
    for fault in every_fault(start, lambda: write_text(path, "new"), files):
        faults += 1
        assert path.read_text() in ("old", "new"), fault
        assert list(tmp_path.iterdir()) == [path], fault
    print(f"{faults} faults in writing a file: 0 half done")
    assert faults >= 10


def test_a_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for it: writing fails in the middle of the file."""
    path = tmp_path / "result"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as caught:
            write_bytes(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_only_what_the_dead_of_this_machine_have_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = files._machine()
    monkeypatch.setattr("platform.node", lambda: "another")
    names = [
        f".a.{machine}-{process}-{'0' * 16}.partial"
        for machine in (here, files._machine())
        for process in (dead.pid, os.getpid(), 1)
    ]
    monkeypatch.undo()
    for name in [*names, ".a.partial", ".ab.partial"]:
        (tmp_path / name).touch()
    files.remove_abandoned(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], ".a.partial", ".ab.partial"}


def test_kill_minus_9(tmp_path: Path) -> None:
    path = tmp_path / "result"
    code = (
        "import sys; from attn_plugins.files import write_bytes\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    for letter in (b'a', b'b'): write_bytes(sys.argv[1], letter * 100_000)\n"
    )
    root = str(Path(__file__).parents[1])
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=root)
        assert child.stdout is not None
        child.stdout.readline()
        while not path.exists():
            pass
        child.kill()
        child.communicate()
        assert path.read_bytes() in (b"a" * 100_000, b"b" * 100_000)
