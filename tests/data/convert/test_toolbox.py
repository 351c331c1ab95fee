"""The folders that Monocular-Depth-Estimation-Toolbox asks for are linked as the probes read them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.conversions import assert_accepted, first_items, picture, save, tree

from attn_plugins.cli import main
from attn_plugins.data.check import check
from attn_plugins.data.convert import convert

DRIVE = "2011_09_26_drive_0001_sync"


def nyu(folder: Path) -> None:
    """Training and test scenes beside each other; the lists' paths begin with a slash, as the toolbox's do."""
    for name, scene in (("train", "kitchen_0028b"), ("test", "bathroom")):
        lines = []
        for number in (45, 46):
            image, depth = f"/{scene}/rgb_{number:05d}.jpg", f"/{scene}/sync_depth_{number:05d}.png"
            save(folder / image[1:], picture(number, 480, 640))
            save(folder / depth[1:], ramp(480, 640, 1000, 6000))
            lines.append(f"{image} {depth} 518.8579\n")
        (folder / f"nyu_{name}.txt").write_text("".join(lines))


def kitti(folder: Path) -> None:
    """Raw drives below input/, improved depth below gt_depth/; the second line of each list has none."""
    for name, numbers in (("train", (5, 6)), ("test", (7, 8))):
        lines = []
        for number in numbers:
            image = f"2011_09_26/{DRIVE}/image_02/data/{number:010d}.png"
            depth = f"{DRIVE}/proj_depth/groundtruth/image_02/{number:010d}.png"
            save(folder / "input" / image, picture(number, 375, 1242))
            if number == numbers[0]:
                save(folder / "gt_depth" / depth, ramp(375, 1242, 5 * 256, 60 * 256))
            lines.append(f"{image} {depth if number == numbers[0] else 'None'} 721.5377\n")
        (folder / f"kitti_eigen_{name}.txt").write_text("".join(lines))


def ramp(height: int, width: int, low: int, high: int) -> np.ndarray:
    """[H, W] of stored depth, from `low` in the first row to `high` in the last."""
    return np.repeat(np.linspace(low, high, height).astype(np.uint16)[:, None], width, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "config", "linked"),
    [("nyuv2", nyu, "nyuv2_linear4_depth", 8), ("kitti", kitti, "kitti_linear4_depth", 5)],
)
def test_the_toolboxs_folder_becomes_the_probes(
    name: str, make: Callable[[Path], None], config: str, linked: int, tmp_path: Path
) -> None:
    source, out = tmp_path / "toolbox", tmp_path / "out"
    make(source)
    (problem, *_) = check(name, source)
    assert problem.kind == "unconverted" and "Monocular-Depth-Estimation-Toolbox" in problem.found
    done, _ = convert(name, source, out)
    assert (done.linked, done.written) == (linked, 2), "the two lists are written"
    assert_accepted(name, out)
    assert all("gt_depth_map" in item["data_samples"] for item in first_items(config, out))


def test_files_and_lists_are_where_the_configs_look(tmp_path: Path) -> None:
    kitti(tmp_path / "toolbox")
    convert("kitti", tmp_path / "toolbox", tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {
        "eigen_train_files_with_gt.txt",
        "eigen_test_files_with_gt.txt",
        *(f"2011_09_26/{DRIVE}/image_02/data/{number:010d}.png" for number in (5, 7, 8)),
        *(f"data_depth_annotated/{DRIVE}/proj_depth/groundtruth/image_02/{n:010d}.png" for n in (5, 7)),
    }
    assert "None" not in (tmp_path / "out/eigen_train_files_with_gt.txt").read_text()
    assert (
        f"2011_09_26/{DRIVE}/image_02/data/0000000008.png None 721.5377"
        in (tmp_path / "out/eigen_test_files_with_gt.txt").read_text()
    )


def test_a_list_that_leads_out_or_names_what_is_not_there(tmp_path: Path) -> None:
    nyu(tmp_path / "toolbox")
    listed = tmp_path / "toolbox/nyu_train.txt"
    for line, told in (
        ("../../etc/a.jpg b.png 518.8", "is no path below its folder"),
        ("a.jpg", "expected 'IMAGE DEPTH"),
        ("none/a.jpg none/b.png 518.8", "2 of the 2 files of .*nyu_train.txt do not exist"),
        ("", "names no image with depth"),
    ):
        listed.write_text(line + "\n")
        with pytest.raises(ValueError, match=told):
            convert("nyuv2", tmp_path / "toolbox", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_out_is_of_one_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("a", "b"):
        nyu(tmp_path / source)
    command = ["data", "convert", "nyuv2"]
    assert main([*command, str(tmp_path / "a"), str(tmp_path / "out")]) == 0
    before = tree(tmp_path / "out")
    assert main([*command, str(tmp_path / "b"), str(tmp_path / "out")]) == 2
    assert "was converted from something else (source=" in capsys.readouterr().err
    with (tmp_path / "a/nyu_train.txt").open("a") as file:
        file.write((tmp_path / "a/nyu_test.txt").read_text())
    assert main([*command, str(tmp_path / "a"), str(tmp_path / "out")]) == 2
    assert "files=" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "b"), str(tmp_path / "a")]) == 2
    assert "holds files that no conversion wrote" in capsys.readouterr().err
    assert tree(tmp_path / "out") == before


def test_again_nothing_is_done_and_what_was_lost_comes_back(tmp_path: Path) -> None:
    nyu(tmp_path / "toolbox")
    convert("nyuv2", tmp_path / "toolbox", tmp_path / "out")
    before = tree(tmp_path / "out")
    lost = next((tmp_path / "out/sync").rglob("*.jpg"))
    lost.unlink()
    done, _ = convert("nyuv2", tmp_path / "toolbox", tmp_path / "out")
    assert (done.linked, done.written, done.there) == (1, 0, len(before) - 1)
    assert tree(tmp_path / "out") == before


def test_where_nothing_can_be_linked_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    nyu(tmp_path / "toolbox")
    monkeypatch.setattr(os, "link", refuse)
    done, _ = convert("nyuv2", tmp_path / "toolbox", tmp_path / "out")
    assert done.linked == 0 and done.copied == 8
    assert_accepted("nyuv2", tmp_path / "out")


def test_a_source_that_is_none_and_an_option_that_is_anothers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "convert", "nyuv2"]
    assert main([*command, str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "none does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([*command, str(tmp_path / "empty"), str(tmp_path / "out")]) == 2
    assert "it would hold nyu_depth_v2_labeled.mat and splits.mat; or" in capsys.readouterr().err
    nyu(tmp_path / "toolbox")
    assert main([*command, str(tmp_path / "toolbox"), str(tmp_path / "out"), "--filled"]) == 2
    assert "--filled says nothing about" in capsys.readouterr().err
