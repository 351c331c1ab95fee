"""SUN RGB-D's two archives, laid out as they unpack, become the lists that the probes read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.conversions import assert_accepted, first_items, picture, save, tree
from scipy.io import savemat

from attn_plugins.cli import main
from attn_plugins.data.check import check
from attn_plugins.data.convert import Options, convert

# As their authors' disk had them; one ends in a slash, one has two in front.
PREFIX = "/n/fs/sun3d/data/SUNRGBD"
TRAIN = (f"{PREFIX}/kv1/NYUdata/NYU0003", f"/{PREFIX}/xtion/sun3ddata/brown_bm_1/brown_bm_1/0000001-000000000000/")
TEST = (f"{PREFIX}/kv2/kinect2data/000002_2014-05-26_14-23-37_260595134347_rgbf000103-resize",)
SPLITS = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"


def metres(filled: bool) -> np.ndarray:
    """[530, 730], 1 to 5 m; with a hole as it was measured."""
    depth: np.ndarray = np.tile(np.linspace(1, 5, 730), (530, 1))
    if not filled:
        depth[100:110, 200:220] = 0
    return depth


def rotated(depth: np.ndarray) -> np.ndarray:
    """As SUN RGB-D stores it: bitor(bitshift(d, -3), bitshift(d, 13)) of its read3dPoints gives millimetres."""
    millimetres = np.rint(depth * 1000).astype(np.uint16)
    stored: np.ndarray = ((millimetres.astype(np.uint32) << 3) & 0xFFFF | (millimetres >> 13)).astype(np.uint16)
    return stored


def write_splits(file: Path, **cells: tuple[str, ...]) -> None:
    """1 x N cells, as MATLAB has them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for key, paths in cells.items():
        arrays[key] = np.empty((1, len(paths)), object)
        arrays[key][0, :] = paths
    savemat(file, arrays)


def unpacked(folder: Path) -> None:
    for number, path in enumerate((*TRAIN, *TEST)):
        scene = folder / path[path.index("SUNRGBD") :]
        save(scene / "image" / f"{number:07d}.jpg", picture(number, 530, 730))
        for kind, filled in (("depth", False), ("depth_bfx", True)):
            save(scene / kind / f"{number + 7:07d}.png", rotated(metres(filled)))
        (scene / "scene.txt").write_text("office")
    write_splits(folder / SPLITS, alltrain=TRAIN, alltest=TEST)


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    unpacked(tmp_path / "downloads")
    return tmp_path / "downloads"


def test_splits_become_lists_and_files_stay(shipped: Path, tmp_path: Path) -> None:
    before = tree(shipped)
    (problem, *_) = check("sunrgbd", shipped)
    assert problem.kind == "unconverted" and f"attn-plugins data convert sunrgbd {shipped} OUT" in problem.remedy
    out = tmp_path / "out"
    assert main(["data", "convert", "sunrgbd", str(shipped), str(out)]) == 0
    scene = "SUNRGBD/kv2/kinect2data/000002_2014-05-26_14-23-37_260595134347_rgbf000103-resize"
    line = f"{scene}/image/0000002.jpg {scene}/depth/0000009.png"
    assert (out / "SUNRGBD_val_splits.txt").read_text().splitlines() == [line]
    xtion = "SUNRGBD/xtion/sun3ddata/brown_bm_1/brown_bm_1/0000001-000000000000/image/0000001.jpg"
    assert (out / "SUNRGBD_train_splits.txt").read_text().splitlines()[1].startswith(f"{xtion} ")
    assert (out / xtion).samefile(shipped / xtion)
    assert tree(shipped) == before


@pytest.mark.parametrize("filled", [False, True])
def test_the_check_accepts_it_and_the_probe_reads_metres(shipped: Path, tmp_path: Path, filled: bool) -> None:
    _, notes = convert("sunrgbd", shipped, tmp_path / "out", Options(filled=filled))
    assert bool(notes) == filled
    assert_accepted("sunrgbd", tmp_path / "out")
    train, val = first_items("sunrgbd_linear4_depth_train", tmp_path / "out")
    assert train["inputs"].shape == (3, 416, 544)
    np.testing.assert_allclose(val["data_samples"].gt_depth_map.data[0], metres(filled), atol=6e-4)


def test_the_splits_beside_the_folder(shipped: Path, tmp_path: Path) -> None:
    (shipped / SPLITS).rename(shipped / "allsplit.mat")
    done, _ = convert("sunrgbd", shipped, tmp_path / "out")
    assert (done.linked, done.written) == (6, 2)


def test_what_is_wrong_is_told_before_anything_is_written(shipped: Path, tmp_path: Path) -> None:
    for cells, told in (
        ({"alltrain": TRAIN}, "has no alltest"),
        ({"alltrain": TRAIN, "alltest": ("/home/me/kv1/x",)}, "names '/home/me/kv1/x', which has no /SUNRGBD/"),
        ({"alltrain": TRAIN, "alltest": (f"{PREFIX}/../../x",)}, "is no path below its folder"),
        ({"alltrain": TRAIN, "alltest": (f"{PREFIX}/kv1/none",)}, r"none/image holds 0 files \*\.jpg, not 1"),
    ):
        write_splits(shipped / SPLITS, **cells)
        with pytest.raises(ValueError, match=told):
            convert("sunrgbd", shipped, tmp_path / "out")
    (shipped / SPLITS).write_bytes(b"MATLAB")
    with pytest.raises(ValueError, match=r"allsplit\.mat is no readable MATLAB file"):
        convert("sunrgbd", shipped, tmp_path / "out")
    assert not (tmp_path / "out").exists()
