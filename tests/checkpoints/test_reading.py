"""Files that must not be trusted: nothing of them runs, and the refusal says why."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_plugins import checkpoints
from attn_plugins.checkpoints import CheckpointError, identify, load_backbone_state

from . import layouts


class _Runs:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("reader", [identify, load_backbone_state])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, legacy: bool, reader: Callable[..., Any]
) -> None:
    proof, path = tmp_path / "ran", tmp_path / "hostile.pth"
    contents = {**layouts.backbone(depth=1), "payload": _Runs(proof)}
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"refused, nothing in it was run: it asks for \w+\.mkdir"):
        reader(path)
    assert not proof.exists()


def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "ran", tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(_Runs(proof)))
    with pytest.raises(CheckpointError):
        identify(path)
    assert not proof.exists()


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float, legacy: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save(layouts.backbone(depth=1), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"cut\.pth"):
        identify(path)


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="not a torch checkpoint"):
        identify(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        identify(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="a folder without weights that are known here"):
        identify(tmp_path)


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    folder.mkdir()
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    (tmp_path / "x.pth").rename(folder / "x.pth")
    for mmap in (False, True):
        assert checkpoints.read(folder / "x.pth", mmap=mmap)["x"] == 0
