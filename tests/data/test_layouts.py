"""Every layout is read back by an implementation of someone else's, and agrees with the scenes it was written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes, ImageFolder, VOCDetection, VOCSegmentation

from attn_plugins.data.layouts.cityscapes import LABEL_IDS
from attn_plugins.data.layouts.common import VAL_START, void_border
from attn_plugins.data.layouts.depth import encode, rotate_left, rotate_right
from attn_plugins.data.layouts.imagenet import WNIDS, write_imagenet
from attn_plugins.data.layouts.voc import VOC_CLASSES, voc_palette
from attn_plugins.data.scenes import Scene, render

from .made import Made

cv2 = pytest.importorskip("cv2")
mmseg_datasets = pytest.importorskip("mmseg.datasets")


def load(dataset: Any, index: int) -> np.ndarray:
    """The mask that mmseg's own loader gives for one item."""
    loader = mmseg_datasets.transforms.LoadAnnotations()
    out: np.ndarray = loader.transform(dataset.get_data_info(index))["gt_seg_map"]
    return out


def read_depth(path: Path) -> np.ndarray:
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    out: np.ndarray = stored
    return out


def assert_depth(stored: np.ndarray, scale: int, scene: Scene, least: float, steps: int | None = None) -> None:
    """Decoded depth is the scene's within half a step (1/`steps` m), and at least `least` of the pixels have one."""
    valid = stored > 0
    assert valid.mean() >= least
    np.testing.assert_allclose(stored[valid] / scale, scene.depth[valid], rtol=1e-6, atol=0.5 / (steps or scale) + 1e-6)


def test_voc_as_torchvision_reads_it(made: Made) -> None:
    base = made.roots["voc2012"].parents[1]
    for split, count, start in (("train", made.num_train, 0), ("val", made.num_val, VAL_START)):
        masks = VOCSegmentation(base, year="2012", image_set=split)
        details = VOCDetection(base, year="2012", image_set=split)
        assert len(masks) == len(details) == count
        for i in (0, count - 1):
            scene = render(made.seed, start + i, made.size)
            image, mask = masks[i]
            assert mask.mode == "P"
            ids, void = np.asarray(mask), np.asarray(mask) == 255
            assert (ids[~void] == scene.mask[~void]).all()
            assert (void == void_border(scene.instances, 1)).all()
            assert np.abs(np.asarray(image, int) - scene.image).mean() < 8  # JPEG
            objects = details[i][1]["annotation"]["object"]
            found = [(o["name"], *(int(o["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax"))) for o in objects]
            assert found == [(VOC_CLASSES[b.label - 1], b.xmin + 1, b.ymin + 1, b.xmax, b.ymax) for b in scene.boxes]


def test_voc_as_mmseg_reads_it(made: Made) -> None:
    dataset = mmseg_datasets.PascalVOCDataset(
        ann_file="ImageSets/Segmentation/val.txt",
        data_root=str(made.roots["voc2012"]),
        data_prefix={"img_path": "JPEGImages", "seg_map_path": "SegmentationClass"},
    )
    assert len(dataset) == made.num_val
    assert ("background", *VOC_CLASSES) == dataset.metainfo["classes"]
    assert voc_palette()[:21].tolist() == dataset.metainfo["palette"]
    mask = load(dataset, 2)
    assert set(np.unique(mask)) - {0, 255} <= set(np.unique(render(made.seed, VAL_START + 2, made.size).mask))


def test_voc_main_image_sets(made: Made) -> None:
    folder = made.roots["voc2012"] / "ImageSets" / "Main"
    scene = render(made.seed, 0, made.size)
    shown = {box.label for box in scene.boxes}
    for label, name in enumerate(VOC_CLASSES, 1):
        first, *rest = (folder / f"{name}_train.txt").read_text().splitlines()
        assert first.split()[1] == ("1" if label in shown else "-1")
        assert len(rest) == made.num_train - 1


def test_ade20k_as_mmseg_reads_it(made: Made) -> None:
    for folder, count, start in (("training", made.num_train, 0), ("validation", made.num_val, VAL_START)):
        dataset = mmseg_datasets.ADE20KDataset(
            data_root=str(made.roots["ade20k"]),
            data_prefix={"img_path": f"images/{folder}", "seg_map_path": f"annotations/{folder}"},
        )
        assert len(dataset) == count
        mask, scene = load(dataset, 0), render(made.seed, start, made.size)
        edges = void_border(scene.instances, 1)
        assert ((mask == 255) == edges).all()  # reduce_zero_label
        objects = (scene.mask > 0) & ~edges
        assert (mask[objects] == scene.mask[objects] + 19).all()
        assert mask[~edges].max() < 150
        assert len(set(np.unique(mask[scene.stuff > 0])) - {255}) >= 2


def test_cityscapes_as_mmseg_and_torchvision_read_it(made: Made) -> None:
    root = made.roots["cityscapes"]
    by_train_id = {c.train_id: c.id for c in Cityscapes.classes if 0 <= c.train_id < 255}
    assert tuple(by_train_id[i] for i in range(19)) == LABEL_IDS
    for split, count, start in (("train", made.num_train, 0), ("val", made.num_val, VAL_START)):
        ours = mmseg_datasets.CityscapesDataset(
            data_root=str(root),
            data_prefix={"img_path": f"leftImg8bit/{split}", "seg_map_path": f"gtFine/{split}"},
        )
        theirs = Cityscapes(root, split=split, mode="fine", target_type="semantic")
        assert len(ours) == len(theirs) == count
        image, target = theirs[theirs.images.index(ours.get_data_info(0)["img_path"])]  # theirs are in no order
        train_ids, label_ids = load(ours, 0), np.asarray(target)
        assert (np.asarray(image) == render(made.seed, start, made.size, indoor=False).image).all()
        assert set(np.unique(train_ids)) <= {*range(19), 255}
        for train_id in np.unique(train_ids):
            assert set(label_ids[train_ids == train_id]) == {by_train_id.get(int(train_id), 0)}


def test_nyuv2_depth_decodes_back(made: Made) -> None:
    root = made.roots["nyuv2"]
    for name, folder, start in (("train", "sync", 0), ("test", "official_splits/test", VAL_START)):
        lines = (root / f"nyudepthv2_{name}_files_with_gt.txt").read_text().splitlines()
        for i, line in enumerate(lines):
            image, depth, focal = line.split()
            scene = render(made.seed, start + i, made.size, indoor=True, far=10.0)
            assert cv2.imread(str(root / folder / image.lstrip("/"))).shape == (*made.size, 3)
            assert_depth(read_depth(root / folder / depth.lstrip("/")), 1000, scene, 0.6)
            assert float(focal) == pytest.approx(scene.focal, abs=1e-4)


def test_kitti_depth_decodes_back(made: Made) -> None:
    root = made.roots["kitti"]
    without = 0
    for name, start in (("train", 0), ("test", VAL_START)):
        for i, line in enumerate((root / f"eigen_{name}_files_with_gt.txt").read_text().splitlines()):
            image, depth, _ = line.split()
            scene = render(made.seed, start + i, made.size, indoor=False, far=80.0)
            assert (np.asarray(Image.open(root / image)) == scene.image).all()
            if depth == "None":
                without += 1
                continue
            raw = read_depth(root / "data_depth_velodyne" / depth.replace("groundtruth", "velodyne_raw"))
            assert_depth(raw, 256, scene, 0.02)
            improved = read_depth(root / "data_depth_annotated" / depth)
            assert_depth(improved, 256, scene, 0.1)
            assert (improved > 0).sum() > (raw > 0).sum()
    assert without == 1


def test_sunrgbd_depth_decodes_back_both_ways(made: Made) -> None:
    root = made.roots["sunrgbd"]
    sensors = set()
    for name, start in (("train", 0), ("val", VAL_START)):
        for i, line in enumerate((root / f"SUNRGBD_{name}_splits.txt").read_text().splitlines()):
            image, depth = line.split()
            sensors.add(image.split("/")[1])
            scene = render(made.seed, start + i, made.size, indoor=True, far=8.0)
            assert cv2.imread(str(root / image)).shape == (*made.size, 3)
            stored = read_depth(root / depth).astype(np.uint32)
            # The official toolbox: bitor(bitshift(d, -3), bitshift(d, 16 - 3)) on 16 bits.
            official = ((stored >> 3) | (stored << 13)) & 0xFFFF
            assert_depth(official, 1000, scene, 1.0)
            assert_depth(stored, 8000, scene, 1.0, steps=1000)  # as DINOv2's configs read it
            measured = read_depth(root / depth.replace("depth_bfx", "depth"))
            assert 0 < (measured == 0).sum() < measured.size
    assert sensors == {"kv1", "kv2", "realsense", "xtion"}


def test_imagenet_as_torchvision_reads_it(made: Made, tmp_path: Path) -> None:
    root = made.roots["imagenet"]
    train, val = ImageFolder(str(root / "train")), ImageFolder(str(root / "val"))
    assert tuple(train.classes) == tuple(val.classes) == WNIDS
    assert (len(train), len(val)) == (made.num_train, made.num_val)
    labels = dict(line.split() for line in (root / "meta" / "val.txt").read_text().splitlines())
    assert {Path(path).name: str(index) for path, index in val.samples} == labels
    boxes = root / "Annotations" / "CLS-LOC" / "val"
    for path, _ in val.samples:
        assert Path(path).parent.name in (boxes / f"{Path(path).stem}.xml").read_text()

    flat = write_imagenet(tmp_path / "flat", made.num_train, made.num_val, made.seed, made.size, flat_val=True)
    assert (flat / "meta" / "val.txt").read_text() == (root / "meta" / "val.txt").read_text()
    for path, _ in val.samples:
        assert (flat / "val" / Path(path).name).read_bytes() == Path(path).read_bytes()


def test_bits_rotate_there_and_back() -> None:
    everything = np.arange(65536, dtype=np.uint16)
    assert (rotate_right(rotate_left(everything)) == everything).all()
    assert [int(v) for v in rotate_left(np.array([1, 0x8000, 0x2000], np.uint16))] == [8, 4, 1]


def test_depth_that_does_not_fit_is_refused() -> None:
    deep = np.full((2, 2), 70.0, np.float32)
    with pytest.raises(ValueError, match=r"70\.0 m does not fit"):
        encode(deep, 1000, np.ones((2, 2), bool))
    assert (encode(deep, 1000, np.zeros((2, 2), bool)) == 0).all()
