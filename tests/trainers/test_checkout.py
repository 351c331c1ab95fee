"""apply, revert, check: on a made-up upstream, so that no checkout is needed."""

import hashlib
import subprocess

import pytest

from attn_plugins.cli import main
from attn_plugins.trainers.checkout import ApplyError, Patch, apply, load, revert, status

UPSTREAM = {"train.py": b"".join(b"line %d\n" % n for n in range(20)), "lib/eval.py": b"one\ntwo\nthree\n"}
INSERTIONS = {"train.py": [(2, [b"ours a\n"]), (9, [b"ours b\n", b"ours c\n"])], "lib/eval.py": [(0, [b"ours d\n"])]}


def git(root, *arguments, **kwargs):
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, **kwargs).stdout.strip()


def blob(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def patch():
    before = {file: blob(content) for file, content in UPSTREAM.items()}
    made = Patch("made-up", "https://example.org/repo", ("0" * 40,), before, {}, INSERTIONS)
    after = {file: blob(made.insert(file, content)) for file, content in UPSTREAM.items()}
    return Patch("made-up", "https://example.org/repo", ("0" * 40,), before, after, INSERTIONS)


@pytest.fixture
def checkout(tmp_path):
    for file, content in UPSTREAM.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "upstream")
    return tmp_path


def contents(root):
    return {file: (root / file).read_bytes() for file in UPSTREAM}


def test_our_blob_ids_are_gits(checkout, patch):
    for file, expected in patch.before.items():
        assert git(checkout, "hash-object", file) == expected


def test_apply_then_revert_gives_back_every_byte_and_mode(checkout, patch):
    (checkout / "train.py").chmod(0o755)
    assert status(patch, checkout) == "clean"
    assert sorted(apply(patch, checkout)) == sorted(UPSTREAM)
    assert status(patch, checkout) == "applied"
    assert (checkout / "train.py").stat().st_mode & 0o777 == 0o755
    added = git(checkout, "diff", "-U0", "--", ".").splitlines()
    assert not [line for line in added if line.startswith("-") and not line.startswith("---")]
    assert apply(patch, checkout) == []
    revert(patch, checkout)
    assert contents(checkout) == UPSTREAM
    assert revert(patch, checkout) == []
    assert [path.name for path in checkout.rglob("*.attn_plugins")] == []


def test_a_dirty_file_is_refused_and_nothing_changes(checkout, patch):
    (checkout / "lib/eval.py").write_bytes(b"mine\n")
    before = contents(checkout)
    with pytest.raises(ApplyError, match=r"lib/eval.py: has uncommitted changes[^$]*--3way"):
        apply(patch, checkout)
    assert contents(checkout) == before


def test_another_version_and_a_missing_file_are_refused(checkout, patch):
    (checkout / "lib/eval.py").write_bytes(b"newer\n")
    git(checkout, "commit", "-qam", "newer")
    (checkout / "train.py").unlink()
    with pytest.raises(ApplyError) as caught:
        apply(patch, checkout)
    assert "train.py: missing" in str(caught.value)
    assert "lib/eval.py: is another version" in str(caught.value)


def test_half_a_patch_is_refused(checkout, patch):
    (checkout / "train.py").write_bytes(patch.insert("train.py", UPSTREAM["train.py"]))
    with pytest.raises(ApplyError, match="some files have the patch"):
        apply(patch, checkout)


def test_it_works_without_git_history(tmp_path, patch):
    for file, content in UPSTREAM.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    assert apply(patch, tmp_path)
    assert status(patch, tmp_path) == "applied"


def test_three_way_keeps_the_users_own_change(checkout, patch):
    mine = UPSTREAM["train.py"].replace(b"line 19\n", b"line 19, mine\n")
    (checkout / "train.py").write_bytes(mine)
    apply(patch, checkout, three_way=True)
    assert (checkout / "train.py").read_bytes() == patch.insert("train.py", mine)
    revert(patch, checkout, three_way=True)
    assert (checkout / "train.py").read_bytes() == mine


def test_three_way_with_a_conflict_changes_nothing(checkout, patch):
    (checkout / "train.py").write_bytes(UPSTREAM["train.py"].replace(b"line 1\nline 2\n", b"x\ny\n"))
    before = contents(checkout)
    with pytest.raises(ApplyError, match=r"cannot merge train\.py"):
        apply(patch, checkout, three_way=True)
    assert contents(checkout) == before


def test_a_write_that_fails_half_way_is_undone(checkout, patch, monkeypatch):
    from pathlib import Path

    replace = Path.replace

    def fails_on_eval(self, target):
        if Path(target).name == "eval.py":
            raise OSError("disk full")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails_on_eval)
    with pytest.raises(OSError, match="disk full"):
        apply(patch, checkout)
    assert contents(checkout) == UPSTREAM


def test_an_unknown_trainer_lists_those_there_are():
    with pytest.raises(ApplyError, match=r"no patch for 'moco'.*dino, dinov2"):
        load("moco")


def test_the_command_refuses_a_folder_that_is_no_checkout(tmp_path, capsys):
    assert main(["apply", "dino", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "main_dino.py: missing" in message
    assert "7c446df5b9f4" in message
