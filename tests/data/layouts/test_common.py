"""A data root is there completely or not at all, is used again when it is the same, and nothing else is touched."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attn_plugins.data.layouts import LAYOUTS
from attn_plugins.data.layouts.common import MANIFEST
from attn_plugins.data.layouts.voc import write_voc

SIZE = (48, 64)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def refuse(done: int, total: int) -> None:
    raise AssertionError(f"rendered scene {done} of {total} again")


def test_an_existing_root_is_used_again(tmp_path: Path) -> None:
    root = write_voc(tmp_path, 3, 2, 0, SIZE)
    before = contents(root)
    assert write_voc(tmp_path, 3, 2, 0, SIZE, progress=refuse) == root
    assert contents(root) == before


@pytest.mark.parametrize("change", [{"num_val": 3}, {"seed": 1}, {"size": (48, 48)}])
def test_other_parameters_are_refused_and_named(tmp_path: Path, change: dict[str, Any]) -> None:
    same: dict[str, Any] = {"num_train": 3, "num_val": 2, "seed": 0, "size": SIZE}
    root = write_voc(tmp_path, **same)
    before = contents(root)
    with pytest.raises(FileExistsError, match=next(iter(change))):
        write_voc(tmp_path, **{**same, **change})
    assert contents(root) == before


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path, name: str) -> None:
    mine = {"voc2012": "VOCdevkit/VOC2012", "ade20k": "ADEChallengeData2016"}.get(name, "")
    folder = tmp_path / "root" / mine
    folder.mkdir(parents=True)
    (folder / "precious.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="not written here"):
        LAYOUTS[name](tmp_path / "root", 20, 20, 0, SIZE)
    assert contents(folder) == {"precious.txt": b"kept"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    assert (LAYOUTS["kitti"](tmp_path / "k", 1, 1, 0, SIZE) / MANIFEST).is_file()


def test_more_scenes_keep_the_first_ones(tmp_path: Path) -> None:
    few, more = (write_voc(tmp_path / str(n), n, 2, 0, SIZE) for n in (3, 5))
    for i in range(1, 4):
        name = f"JPEGImages/2012_{i:06d}.jpg"
        assert (few / name).read_bytes() == (more / name).read_bytes()
    first_val = [(root / "ImageSets/Segmentation/val.txt").read_text().split()[0] for root in (few, more)]
    assert (few / f"JPEGImages/{first_val[0]}.jpg").read_bytes() == (
        more / f"JPEGImages/{first_val[1]}.jpg"
    ).read_bytes()


def test_progress_counts_every_scene(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_voc(tmp_path, 3, 2, 0, SIZE, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_killed_in_the_middle_leaves_no_root_and_the_next_run_completes(tmp_path: Path) -> None:
    code = f"""
import os, signal
from attn_plugins.data.layouts.voc import write_voc
def die(done, total):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
write_voc({str(tmp_path / "killed")!r}, 3, 2, 0, {SIZE}, progress=die)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    root = tmp_path / "killed" / "VOCdevkit" / "VOC2012"
    assert not root.exists()
    assert list((root.parent / "VOC2012.partial" / "JPEGImages").iterdir())
    assert write_voc(tmp_path / "killed", 3, 2, 0, SIZE) == root
    assert contents(root) == contents(write_voc(tmp_path / "whole", 3, 2, 0, SIZE))
    assert {path.name for path in root.parent.iterdir()} == {"VOC2012", ".VOC2012.lock"}


def test_two_processes_write_one_root(tmp_path: Path) -> None:
    code = f"""
from attn_plugins.data.layouts.voc import write_voc
written = []
write_voc({str(tmp_path)!r}, 12, 4, 0, {SIZE}, progress=lambda done, total: written.append(done))
print(len(written))
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = sorted(int(process.communicate(timeout=120)[0]) for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert counts == [0, 16]


@pytest.mark.parametrize(("num_train", "num_val"), [(0, 1), (1, 0), (-1, 1)])
def test_an_empty_split_is_refused(tmp_path: Path, num_train: int, num_val: int) -> None:
    with pytest.raises(ValueError, match="at least one scene"):
        write_voc(tmp_path / "new", num_train, num_val, 0, SIZE)
    assert not (tmp_path / "new").exists()


def test_imagenet_needs_every_class_in_both_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_val=19.*20"):
        LAYOUTS["imagenet"](tmp_path / "new", 20, 19, 0, SIZE)
    assert not (tmp_path / "new").exists()
