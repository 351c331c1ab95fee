"""NYUv2's labelled .mat, laid out as its authors write it, becomes the files that BTS makes of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.conversions import assert_accepted, first_items, killed_in_write, picture, save, tree
from scipy.io import savemat

from attn_plugins.cli import main
from attn_plugins.data.check import check
from attn_plugins.data.convert import Options, convert

h5py = pytest.importorskip("h5py", reason="NYUv2's .mat is HDF5: pip install h5py")

ROOMS = ("bathroom", "living_room", "kitchen", "office", "bathroom", "home_office")
TRAIN, TEST = (2, 3, 6), (1, 4, 5)  # from 1, as MATLAB counts


def depth_of(number: int) -> np.ndarray:
    """[480, 640] metres, with a hole."""
    rows, columns = np.mgrid[:480, :640]
    metres: np.ndarray = (1 + number / 10 + rows / 120 + columns / 640).astype(np.float32)
    metres[100:110, 200:220] = 0
    return metres


def read(path: Path) -> np.ndarray:
    """Pixels as OpenCV finds them stored."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def write_mat(folder: Path, changes: dict[str, Any] | None = None) -> None:
    """As MATLAB's -v7.3 writes `images` [H, W, 3, N], `rawDepths` [H, W, N] and the cells `sceneTypes` {N, 1}."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.stack([picture(n, 480, 640) for n in range(len(ROOMS))], axis=-1)
    depths = np.stack([depth_of(n) for n in range(len(ROOMS))], axis=-1)
    arrays = {"images": images.T, "rawDepths": depths.T, "depths": np.maximum(depths, 0.5).T, **(changes or {})}
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for name, array in arrays.items():
            if array is not None:
                file.create_dataset(name, data=array, compression="gzip", compression_opts=1)
        cells = file.create_dataset("sceneTypes", (1, len(ROOMS)), dtype=h5py.ref_dtype)
        for number, room in enumerate(ROOMS):
            codes = np.array([[ord(letter)] for letter in room], np.uint16)
            cells[0, number] = file.create_dataset(f"#refs#/{number}", data=codes).ref
    write_splits(folder, TRAIN, TEST)


def write_splits(folder: Path, train: tuple[int, ...], test: tuple[int, ...]) -> None:
    savemat(folder / "splits.mat", {"trainNdxs": np.array([train]).T, "testNdxs": np.array([test]).T})


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nyu")
    write_mat(folder)
    return folder


@pytest.fixture(scope="module")
def converted(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "nyu"
    assert main(["data", "convert", "nyuv2", str(shipped), str(out)]) == 0
    return out


def test_the_files_are_those_of_bts(converted: Path) -> None:
    assert set(tree(converted)) == {
        "nyudepthv2_train_files_with_gt.txt",
        "nyudepthv2_test_files_with_gt.txt",
        *(f"{'official_splits/test' if n + 1 in TEST else 'sync'}/{room}/{file}"
          for n, room in enumerate(ROOMS) for file in (f"rgb_{n:05d}.jpg", f"sync_depth_{n:05d}.png")),
    }  # fmt: skip
    first = (converted / "nyudepthv2_test_files_with_gt.txt").read_text().splitlines()[0]
    assert first == "bathroom/rgb_00000.jpg bathroom/sync_depth_00000.png 518.8579"


@pytest.mark.parametrize(("number", "below"), [(0, "official_splits/test/bathroom"), (2, "sync/kitchen")])
def test_pixels_and_millimetres_are_those_of_the_mat(converted: Path, number: int, below: str) -> None:
    stored = read(converted / below / f"sync_depth_{number:05d}.png")
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, (depth_of(number) * 1000).astype(np.uint16))
    image = read(converted / below / f"rgb_{number:05d}.jpg")[:, :, ::-1].astype(int)
    inner = (slice(10, 470), slice(10, 628))  # JPEG blurs the frame's edge
    assert np.abs(image[inner] - picture(number, 480, 640)[inner]).mean() < 2
    assert max(image[:6].max(), image[475:].max(), image[:, :6].max(), image[:, 633:].max()) < 60, "a black frame"
    assert picture(number, 480, 640)[:6].max() > 100


def test_the_check_accepts_them_and_the_probe_reads_them(converted: Path) -> None:
    assert_accepted("nyuv2", converted)
    train, val = first_items("nyuv2_linear4_depth", converted)
    assert train["inputs"].shape == (3, 416, 544)
    depth = val["data_samples"].gt_depth_map.data
    np.testing.assert_allclose(depth[0], depth_of(0), atol=1e-3)


def test_holes_are_filled_where_that_is_asked_for(shipped: Path, tmp_path: Path) -> None:
    done, notes = convert("nyuv2", shipped, tmp_path / "out", Options(filled=True))
    assert done.written == 2 * len(ROOMS) + 2 and any("filled" in note for note in notes)
    stored = read(tmp_path / "out/sync/kitchen/sync_depth_00002.png")
    assert stored[105, 210] == 500


def test_frames_of_bts_beside_the_mat_are_linked(shipped: Path, tmp_path: Path) -> None:
    source = tmp_path / "nyu"
    shutil.copytree(shipped, source)
    scene = source / "sync/kitchen_0028b"
    save(scene / "rgb_00045.jpg", picture(1, 480, 640))
    save(scene / "sync_depth_00045.png", (depth_of(1) * 1000).astype(np.uint16))
    with pytest.raises(ValueError, match=r"nyudepthv2_train_files_with_gt\.txt does not exist"):
        convert("nyuv2", source, tmp_path / "out")
    line = "/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579\n"
    (source / "nyudepthv2_train_files_with_gt.txt").write_text(line)
    done, notes = convert("nyuv2", source, tmp_path / "out")
    assert (done.linked, notes) == (2, ())
    linked = tmp_path / "out/sync/kitchen_0028b/rgb_00045.jpg"
    assert linked.samefile(scene / "rgb_00045.jpg")
    assert_accepted("nyuv2", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: (f / "splits.mat").unlink(), "splits.mat does not exist"),
        (lambda f: (f / "splits.mat").write_bytes(b"no mat"), "splits.mat is no readable MATLAB file"),
        (lambda f: savemat(f / "splits.mat", {"train": [1]}), "has no trainNdxs and no testNdxs"),
        (lambda f: write_splits(f, (1, 2), (3, 4)), "4 numbers from 1 to 4, and the .mat images 1 to 6"),
        (lambda f: write_splits(f, (1, 2, 3), (3, 4, 5)), "use the two files of one release"),
        (lambda f: (f / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 5.0"), "no readable MATLAB 7.3"),
        (lambda f: write_mat(f, {"rawDepths": None}), "has no 'rawDepths'.*--filled takes `depths` instead"),
        (lambda f: write_mat(f, {"images": np.zeros((6, 480, 640, 3), np.uint8)}), "reverse of MATLAB's axes"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    shipped: Path, tmp_path: Path, change: Any, told: str
) -> None:
    source = tmp_path / "nyu"
    shutil.copytree(shipped, source)
    change(source)
    with pytest.raises(ValueError, match=told):
        convert("nyuv2", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_depth_that_is_no_metres_stops_and_goes_on_once_mended(shipped: Path, tmp_path: Path) -> None:
    source = tmp_path / "nyu"
    source.mkdir()
    broken = np.stack([depth_of(n) for n in range(len(ROOMS))], axis=-1).T
    broken[5, 3, 3] = np.nan
    write_mat(source, {"rawDepths": broken})
    with pytest.raises(ValueError, match="rawDepths of image 6 is from nan to nan"):
        convert("nyuv2", source, tmp_path / "out")
    (problem, *_) = check("nyuv2", tmp_path / "out")
    assert problem.kind == "half-converted" and f"data convert nyuv2 {source}" in problem.remedy


def test_the_check_names_the_converter(shipped: Path) -> None:
    (problem, *_) = check("nyuv2", shipped)
    assert problem.kind == "unconverted" and f"attn-plugins data convert nyuv2 {shipped} OUT" in problem.remedy


def test_killed_in_the_middle_of_files_it_goes_on(shipped: Path, converted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 4, 5, 2):
        killed_in_write(lambda: convert("nyuv2", shipped, out), number)
        assert list(out.rglob(".*.partial")) and not list(out.glob("*.txt"))
    done, _ = convert("nyuv2", shipped, out)
    assert tree(out) == tree(converted)
    assert done.there == 8 and done.written == len(tree(converted)) - 8


def test_without_h5py_the_extra_is_named(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert main(["data", "convert", "nyuv2", str(shipped), str(tmp_path / "out")]) == 2
    assert "pip install 'attn_plugins[convert]'" in capsys.readouterr().err
