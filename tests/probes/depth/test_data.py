"""Split files, depth PNGs, and transforms that keep image and depth aligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmseg.registry import TRANSFORMS
from scipy import ndimage

from attn_plugins.probes.depth.data import BorderCrop, ColorAugment, DepthSplit, KBCrop, LoadDepth, RandomDepthRotate


def sample(height: int = 480, width: int = 640) -> dict[str, Any]:
    """The image's first channel is the depth in decimetres: whatever moves one has to move the other."""
    rows, columns = np.mgrid[:height, :width]
    ramp = (20 + 80 * columns / width + 60 * rows / height).astype(np.uint8)
    return {
        "img": np.stack([ramp] * 3, axis=-1),
        "gt_depth_map": ramp.astype(np.float32) / 10,
        "seg_fields": ["gt_depth_map"],
        "img_shape": (height, width),
        "ori_shape": (height, width),
    }


@pytest.mark.parametrize(
    "transform",
    [
        BorderCrop(),
        KBCrop(100, 200),
        RandomDepthRotate(prob=1.0, degree=2.5),
        TRANSFORMS.build({"type": "RandomFlip", "prob": 1.0}),
        TRANSFORMS.build({"type": "RandomCrop", "crop_size": (200, 300)}),
    ],
    ids=lambda t: type(t).__name__,
)
def test_image_and_depth_move_together(transform: Any) -> None:
    before = sample()
    after = transform(sample())
    image, depth = after["img"][..., 0].astype(np.float32) / 10, after["gt_depth_map"]
    assert image.shape == depth.shape
    assert image.shape != before["img"].shape[:2] or not np.array_equal(image, before["gt_depth_map"])
    inside = ndimage.binary_erosion(depth > 0, iterations=2)
    assert inside.mean() > 0.8
    assert np.abs(image - depth)[inside].max() <= 0.2  # nearest against bilinear, and 8 bits


def test_crops_are_the_protocols() -> None:
    nyu = BorderCrop()(sample())
    assert nyu["img"].shape[:2] == nyu["ori_shape"] == (427, 565)
    np.testing.assert_array_equal(nyu["gt_depth_map"], sample()["gt_depth_map"][45:472, 43:608])
    kitti = KBCrop()(sample(375, 1242))
    np.testing.assert_array_equal(kitti["gt_depth_map"], sample(375, 1242)["gt_depth_map"][23:, 13:1229])
    half = BorderCrop()(sample(240, 320))
    assert half["img"].shape[:2] == (236 - 22, 304 - 22), "half of 45:472, 43:608, rounded"
    with pytest.raises(ValueError, match="480x640, and 375x1242 has another shape"):
        BorderCrop()(sample(375, 1242))
    with pytest.raises(ValueError, match="375x1000 is smaller than the KITTI crop 352x1216"):
        KBCrop()(sample(375, 1000))


def test_color_changes_the_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    np.random.seed(0)
    after = ColorAugment(prob=1.0, brightness=(0.75, 1.25))(sample())
    np.testing.assert_array_equal(after["gt_depth_map"], sample()["gt_depth_map"])
    assert after["img"].min() >= 0 and after["img"].max() <= 255 and after["img"].dtype == np.float32
    assert np.abs(after["img"] - sample()["img"]).mean() > 1
    np.random.seed(0)
    np.random.rand()
    expected = sample()["img"].astype(np.float32) ** np.random.uniform(0.9, 1.1)
    expected *= np.random.uniform(0.75, 1.25) * np.random.uniform(0.9, 1.1, size=3)
    np.testing.assert_allclose(after["img"], expected.clip(0, 255), rtol=1e-5)


@pytest.mark.parametrize(("scale", "rotated"), [(1000, False), (256, False), (1000, True)])
def test_stored_depth_becomes_metres(scale: int, rotated: bool, tmp_path: Path) -> None:
    metres = np.array([[0, 0.5, 1.25], [2.0, 4.0, 7.75]], np.float32)
    stored = np.round(metres * scale).astype(np.uint16)
    if rotated:  # SUNRGBDtoolbox: bitor(bitshift(depth, 3), bitshift(depth, 3 - 16))
        stored = ((stored << 3) | (stored >> 13)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "d.png"), stored)
    results = {"depth_map_path": str(tmp_path / "d.png"), "seg_fields": []}
    np.testing.assert_allclose(LoadDepth(scale, rotated)(results)["gt_depth_map"], metres, atol=1 / scale)


@pytest.mark.parametrize("what", ["missing", "eight bits", "truncated"])
def test_unreadable_depth_is_named(what: str, tmp_path: Path) -> None:
    path = tmp_path / "depth_17.png"
    if what == "eight bits":
        cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))
    elif what == "truncated":
        path.write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"depth_17\.png is .*expected a 16-bit grey PNG"):
        LoadDepth(1000)({"depth_map_path": str(path), "seg_fields": []})


@pytest.mark.parametrize("name", ["nyuv2", "kitti", "sunrgbd"])
def test_the_written_layouts_are_read(name: str, roots: dict[str, Path]) -> None:
    from mmengine.config import Config

    from attn_plugins.probes.run.paths import config_file

    probe = "sunrgbd_linear4_depth_train" if name == "sunrgbd" else name
    for loader, count in (("train_dataloader", 4), ("val_dataloader", 2)):
        options = dict(Config.fromfile(config_file(probe))[loader].dataset)
        options.update(data_root=str(roots[name]), pipeline=[])
        options.pop("type")
        dataset = DepthSplit(**options)
        assert len(dataset) == count
        for entry in dataset.load_data_list():
            assert Path(entry["img_path"]).is_file() and Path(entry["depth_map_path"]).is_file()


def test_raw_kitti_and_lines_without_truth(tmp_path: Path) -> None:
    split = tmp_path / "s.txt"
    split.write_text("/a.png x/groundtruth/a.png 700.0\n\nb.png None 700.0\n")
    folders = {"img_path": "", "depth_map_path": "data_depth_velodyne"}
    dataset = DepthSplit(
        ann_file="s.txt", data_root=str(tmp_path), data_prefix=folders, replace=(("groundtruth", "velodyne_raw"),)
    )
    assert [entry["depth_map_path"] for entry in dataset.load_data_list()] == [
        str(tmp_path / "data_depth_velodyne/x/velodyne_raw/a.png")
    ]
    assert dataset.load_data_list()[0]["img_path"] == str(tmp_path / "a.png")


def test_raw_maps_of_lines_without_truth_are_found_where_they_were_projected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eigen's 697: the common split file says None for 45, whose raw maps are in no archive."""
    lines = [f"2011_09_26/DRIVE/image_02/data/{i}.png None 721.5" for i in (1, 2)]
    (tmp_path / "s.txt").write_text("\n".join(["d/DRIVE/image_02/data/0.png DRIVE/groundtruth/0.png 700", *lines]))
    there = tmp_path / "raw/DRIVE/proj_depth/velodyne_raw/image_02/2.png"
    there.parent.mkdir(parents=True)
    there.touch()
    told: list[str] = []
    monkeypatch.setattr("attn_plugins.probes.depth.data.print_log", lambda message, logger: told.append(message))
    raw: dict[str, Any] = {
        "replace": [("groundtruth", "velodyne_raw")],
        "data_prefix": {"img_path": "", "depth_map_path": "raw"},
    }
    dataset = DepthSplit(ann_file="s.txt", data_root=str(tmp_path), **raw)
    found = [Path(entry["depth_map_path"]) for entry in dataset.load_data_list()]
    assert found == [tmp_path / "raw/DRIVE/velodyne_raw/0.png", there]
    assert "2 images, 1 more have no ground truth" in told[-1] and "velodyne_points" in told[-1]
    improved: dict[str, Any] = {"data_prefix": {"img_path": "", "depth_map_path": "raw"}}
    assert len(DepthSplit(ann_file="s.txt", data_root=str(tmp_path), **improved)) == 1


def test_a_picture_without_depth_stays_whole() -> None:
    for transform in (LoadDepth(256), KBCrop()):
        results = {"img": np.zeros((20, 30, 3), np.uint8), "seg_fields": []}
        assert transform(results) is results and results["img"].shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("text", "message"), [("", "the split is empty"), ("a None\n", "empty"), ("one\n", r"s\.txt:1")]
)
def test_split_files_that_name_nothing(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        DepthSplit(ann_file=str(tmp_path / "s.txt"), data_prefix={"img_path": "", "depth_map_path": ""})
