"""apply, revert, check: on a made-up upstream, so that no checkout is needed."""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from attn_plugins.cli import main
from attn_plugins.trainers.checkout import apply, revert, status
from attn_plugins.trainers.insertions import ApplyError, Patch, load

UPSTREAM = {"train.py": b"".join(b"line %d\n" % n for n in range(20)), "lib/eval.py": b"one\ntwo\nthree\n"}
INSERTIONS = {"train.py": [(2, [b"ours a\n"]), (9, [b"ours b\n", b"ours c\n"])], "lib/eval.py": [(0, [b"ours d\n"])]}


def git(root: Path, *arguments: str, **kwargs: Any) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    out: str = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, **kwargs).stdout.strip()
    return out


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def patch() -> Patch:
    before = {file: blob(content) for file, content in UPSTREAM.items()}
    made = Patch("made-up", "https://example.org/repo", ("0" * 40,), before, {}, INSERTIONS)
    after = {file: blob(made.insert(file, content)) for file, content in UPSTREAM.items()}
    return Patch("made-up", "https://example.org/repo", ("0" * 40,), before, after, INSERTIONS)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for file, content in UPSTREAM.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "upstream")
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {file: (root / file).read_bytes() for file in UPSTREAM}


def test_our_blob_ids_are_gits(checkout: Path, patch: Patch) -> None:
    for file, expected in patch.before.items():
        assert git(checkout, "hash-object", file) == expected


def test_apply_then_revert_gives_back_every_byte_and_mode(checkout: Path, patch: Patch) -> None:
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
    assert [path.name for path in checkout.rglob("*.partial")] == []


def test_a_dirty_file_is_refused_and_nothing_changes(checkout: Path, patch: Patch) -> None:
    (checkout / "lib/eval.py").write_bytes(b"mine\n")
    before = contents(checkout)
    with pytest.raises(ApplyError, match=r"lib/eval.py: has uncommitted changes[^$]*--3way"):
        apply(patch, checkout)
    assert contents(checkout) == before


def test_another_version_and_a_missing_file_are_refused(checkout: Path, patch: Patch) -> None:
    (checkout / "lib/eval.py").write_bytes(b"newer\n")
    git(checkout, "commit", "-qam", "newer")
    (checkout / "train.py").unlink()
    with pytest.raises(ApplyError) as caught:
        apply(patch, checkout)
    assert "train.py: missing" in str(caught.value)
    assert "lib/eval.py: is another version" in str(caught.value)


@pytest.mark.parametrize("done", sorted(UPSTREAM))
def test_half_a_patch_is_completed_or_reverted(checkout: Path, patch: Patch, done: str) -> None:
    (checkout / done).write_bytes(patch.insert(done, UPSTREAM[done]))
    assert status(patch, checkout) == "half applied"
    assert apply(patch, checkout) == [file for file in UPSTREAM if file != done]
    assert status(patch, checkout) == "applied"
    (checkout / done).write_bytes(UPSTREAM[done])
    assert revert(patch, checkout) == [file for file in UPSTREAM if file != done]
    assert contents(checkout) == UPSTREAM


def test_what_the_user_changed_since_does_not_keep_it_from_being_reverted(checkout: Path, patch: Patch) -> None:
    apply(patch, checkout)
    file = checkout / "train.py"
    file.write_bytes(b"first\r\n" + file.read_bytes().replace(b"\n", b"\r\n").replace(b"line 5", b"mine"))
    assert status(patch, checkout) == "applied" and apply(patch, checkout) == []
    assert sorted(revert(patch, checkout)) == sorted(UPSTREAM)
    assert file.read_bytes() == b"first\r\n" + UPSTREAM["train.py"].replace(b"\n", b"\r\n").replace(b"line 5", b"mine")
    assert (checkout / "lib/eval.py").read_bytes() == UPSTREAM["lib/eval.py"]


def test_lines_of_the_patch_that_were_changed_are_not_guessed_at(checkout: Path, patch: Patch) -> None:
    apply(patch, checkout)
    file = checkout / "train.py"
    file.write_bytes(file.read_bytes().replace(b"ours b\n", b""))
    before = contents(checkout)
    for change in (apply, revert):
        with pytest.raises(ApplyError, match=r"train\.py: has some of the lines of the patch and lacks others"):
            change(patch, checkout)
    assert contents(checkout) == before


def test_a_file_without_our_lines_is_nothing_to_revert(checkout: Path, patch: Patch) -> None:
    (checkout / "train.py").write_bytes(b"another\n")
    assert revert(patch, checkout) == []
    assert (checkout / "train.py").read_bytes() == b"another\n"


def test_nothing_is_written_through_links(
    checkout: Path, patch: Patch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "eval.py").write_bytes(UPSTREAM["lib/eval.py"])
    (checkout / "lib/eval.py").unlink()
    (checkout / "lib/eval.py").symlink_to(elsewhere / "eval.py")
    for three_way in (False, True):
        with pytest.raises(ApplyError, match="is a link to"):
            apply(patch, checkout, three_way=three_way)
    (checkout / "lib/eval.py").unlink()
    (checkout / "lib").rmdir()
    (checkout / "lib").symlink_to(elsewhere)
    with pytest.raises(ApplyError, match="is a link to"):
        apply(patch, checkout)
    assert [(path.name, path.read_bytes()) for path in elsewhere.iterdir()] == [("eval.py", UPSTREAM["lib/eval.py"])]
    assert (checkout / "train.py").read_bytes() == UPSTREAM["train.py"]


def test_a_checkout_may_itself_be_reached_through_a_link(
    checkout: Path, patch: Patch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    link = tmp_path_factory.mktemp("links") / "checkout"
    link.symlink_to(checkout)
    assert apply(patch, link) and status(patch, checkout) == "applied"


def test_links_with_the_names_of_temporary_files_are_not_followed(
    checkout: Path, patch: Patch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "theirs"
    outside.write_bytes(b"theirs")
    for name in ("train.py.attn_plugins", ".train.py.partial", f".train.py.{os.getpid()}.partial"):
        (checkout / name).symlink_to(outside)
    apply(patch, checkout)
    assert outside.read_bytes() == b"theirs" and status(patch, checkout) == "applied"


def test_it_works_without_git_history(tmp_path: Path, patch: Patch) -> None:
    for file, content in UPSTREAM.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    assert apply(patch, tmp_path)
    assert status(patch, tmp_path) == "applied"


def test_three_way_keeps_the_users_own_change(checkout: Path, patch: Patch) -> None:
    mine = UPSTREAM["train.py"].replace(b"line 19\n", b"line 19, mine\n")
    (checkout / "train.py").write_bytes(mine)
    apply(patch, checkout, three_way=True)
    assert (checkout / "train.py").read_bytes() == patch.insert("train.py", mine)
    revert(patch, checkout, three_way=True)
    assert (checkout / "train.py").read_bytes() == mine


def test_three_way_with_a_conflict_changes_nothing(checkout: Path, patch: Patch) -> None:
    (checkout / "train.py").write_bytes(UPSTREAM["train.py"].replace(b"line 1\nline 2\n", b"x\ny\n"))
    before = contents(checkout)
    with pytest.raises(ApplyError, match=r"cannot merge train\.py"):
        apply(patch, checkout, three_way=True)
    assert contents(checkout) == before


def test_an_unknown_trainer_lists_those_there_are() -> None:
    with pytest.raises(ApplyError, match=r"no patch for 'moco'.*dino, dinov2"):
        load("moco")


def test_the_command_says_in_which_state_a_checkout_is(
    checkout: Path, patch: Patch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attn_plugins.cli.apply.load", lambda name: patch)
    for change, says, code in (
        (lambda: None, "the patch fits", 0),
        (lambda: apply(patch, checkout), "the patch is applied", 0),
        (lambda: (checkout / "train.py").write_bytes(UPSTREAM["train.py"]), "half applied", 1),
    ):
        change()
        assert main(["apply", "dino", str(checkout), "--check"]) == code
        assert says in capsys.readouterr().out


def test_the_command_refuses_a_folder_that_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", "dino", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "main_dino.py: missing" in message
    assert "7c446df5b9f4" in message
