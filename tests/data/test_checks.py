"""The data check knows the official releases, their splits and sizes, and survives whatever a folder holds."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attn_plugins.data.check import CHECKS, check
from attn_plugins.data.checks.depth import _STORED_SUNRGBD, _check_maps
from attn_plugins.data.layouts import LAYOUTS
from attn_plugins.data.layouts.depth import rotate_left

from .made import Made

OFFICIAL_COUNTS = {  # protocols and releases: images of (train, val)
    "voc2012": ("1,464", "1,449"),
    "ade20k": ("20,210", "2,000"),
    "cityscapes": ("2,975", "500"),
    "nyuv2": ("24,231", "654"),
    "kitti": ("23,158", "652"),
    "sunrgbd": ("5,285", "5,050"),
    "imagenet": ("1,281,167", "50,000"),
}


def foreign(made: Made, name: str, tmp_path: Path) -> Path:
    """A copy that does not say that it was rendered."""
    root = tmp_path / "copy"
    shutil.copytree(made.roots[name], root)
    (root / ".scenes.json").unlink()
    return root


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_part_of_a_release_is_not_the_release(made: Made, name: str, tmp_path: Path) -> None:
    root = foreign(made, name, tmp_path)
    told = [str(problem) for problem in check(name, root) if problem.kind == "count"]
    for count in OFFICIAL_COUNTS[name]:
        assert any(f"the official release {count}\n" in text and "--own" in text for text in told), told
    assert check(name, root, own=True) == []


@pytest.mark.parametrize("name", ["voc2012", "cityscapes", "nyuv2", "kitti"])
def test_sizes_of_the_release_are_known(made: Made, name: str, tmp_path: Path) -> None:
    root = foreign(made, name, tmp_path)
    if name == "voc2012":
        for path in [*root.glob("JPEGImages/*"), *root.glob("SegmentationClass/*")]:
            Image.open(path).resize((96 * 6, 64 * 6), Image.Resampling.NEAREST).save(path)
    told = [str(problem) for problem in check(name, root) if problem.kind == "size"]
    assert told and "pixels, the official release has" in told[0]


def test_splits_that_repeat_or_share_images(made: Made, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made.roots["voc2012"], root)
    folder = root / "ImageSets/Segmentation"
    val, train = (folder / f"{split}.txt" for split in ("val", "train"))
    train.write_text(train.read_text() + train.read_text().split()[0] + "\n" + val.read_text().split()[3] + "\n")
    kinds = {problem.kind: str(problem) for problem in check("voc2012", root)}
    assert set(kinds) == {"repeated-lines", "overlapping-splits"}
    assert "1 of its 24 entries with val.txt" in kinds["overlapping-splits"]


def test_trainaug_is_checked_where_it_is(made: Made, tmp_path: Path) -> None:
    root = foreign(made, "voc2012", tmp_path)
    folder = root / "ImageSets/Segmentation"
    shutil.copy(folder / "train.txt", folder / "trainaug.txt")
    assert check("voc2012", root, own=True) == []
    assert any("10,582" in str(problem) for problem in check("voc2012", root))
    (root / "SegmentationClassAug").mkdir()
    (missing,) = check("voc2012", root, own=True)
    assert "22 of the 22 masks listed in trainaug.txt" in str(missing)


@pytest.mark.parametrize(("square", "kind"), [(False, None), (True, "turned-by-exif")])
def test_pictures_that_exif_turns(made: Made, tmp_path: Path, square: bool, kind: str | None) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made.roots["ade20k"], root)
    path = sorted(root.glob("images/validation/*.jpg"))[0]
    mask = root / "annotations/validation" / f"{path.stem}.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(path).resize((64, 64)) if square else Image.open(path)
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    if square:
        Image.open(mask).resize((64, 64), Image.Resampling.NEAREST).save(mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [problem.kind for problem in check("ade20k", root)] == ([kind] if kind else [])


RUBBISH = (
    b"", b"\xff\xfe\x00", b"\x00" * 64, b"a" * 5000 + b" b\n", "² ³\n".encode(),
    b"\x89PNG\r\n\x1a\n" + b"\x00" * 40,
)  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_check_survives_whatever_is_there(made: Made, name: str, tmp_path: Path) -> None:
    """Bytes, folders, links and pipes in the place of any file: lines with a remedy, and never an exception."""
    rng = np.random.default_rng(0)
    root = tmp_path / "copy"
    shutil.copytree(made.roots[name], root)
    files = [path for path in sorted(root.rglob("*")) if path.suffix in (".jpg", ".png", ".txt", ".JPEG")]
    texts = [path for path in files if path.suffix == ".txt"] or files
    for number in range(40):
        pool = texts if number % 2 else files
        victim = pool[rng.integers(len(pool))]
        if victim.is_dir() and not victim.is_symlink():
            continue
        victim.unlink()
        kind = number % (len(RUBBISH) + 3)
        if kind < len(RUBBISH):
            victim.write_bytes(RUBBISH[kind])
        elif kind == len(RUBBISH):
            victim.mkdir()
        elif kind == len(RUBBISH) + 1:
            victim.symlink_to(victim)
        else:
            os.mkfifo(victim)
        problems = check(name, root)
        assert all(problem.remedy and problem.found for problem in problems)
        assert not [problem for problem in problems if problem.kind == "not-checked"], problems
    assert problems


def test_an_exception_is_a_line_about_its_file(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(root: Path, official: bool) -> list[object]:
        raise PermissionError(13, "Permission denied", str(root / "locked"))

    monkeypatch.setitem(CHECKS, "voc2012", breaks)
    (problem,) = check("voc2012", made.roots["voc2012"])
    assert problem.path == made.roots["voc2012"] / "locked" and "Permission denied" in problem.found


def test_rotated_depth_beyond_8_metres_is_rotated_depth(tmp_path: Path) -> None:
    """Its low bits are set: what is judged is the range of the decoded metres."""
    millimetres = np.random.default_rng(0).uniform(500, 9500, (48, 64)).astype(np.uint16)
    Image.fromarray(rotate_left(millimetres)).save(tmp_path / "d.png")
    Image.fromarray(millimetres).save(tmp_path / "plain.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "i.png")
    assert _check_maps([(tmp_path / "i.png", tmp_path / "d.png")], _STORED_SUNRGBD) == []
    (problem,) = _check_maps([(tmp_path / "i.png", tmp_path / "plain.png")], _STORED_SUNRGBD)
    assert problem.kind == "depth-not-rotated"
