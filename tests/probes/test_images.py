"""The probes' loader: mmcv's pixels, EXIF beside labels; and class counts from the data set in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, TRANSFORMS
from PIL import Image

from attn_plugins.data import images
from attn_plugins.probes.images import LoadProbeImage
from attn_plugins.probes.run.paths import config_file, configs_dir
from attn_plugins.probes.run.runner import build_runner as here
from attn_plugins.probes.segmentation import CheckLabels, _label_checks

from .running import options

OWN = ("sky", "road", "car")


def photo(path: Path, size: tuple[int, int] = (20, 30), orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    return path


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_pixels_are_mmcvs(orientation: int, tmp_path: Path) -> None:
    path = str(photo(tmp_path / "a.jpg", orientation=orientation))
    results = LoadProbeImage()({"img_path": path})
    theirs = mmcv.imread(path)
    np.testing.assert_array_equal(results["img"], theirs)
    assert results["img_shape"] == results["ori_shape"] == theirs.shape[:2]
    unturned = LoadProbeImage(exif=False)({"img_path": path})["img"]
    np.testing.assert_array_equal(unturned, mmcv.imread(path, flag="color_ignore_orientation"))
    by_name = TRANSFORMS.build({"type": "LoadImageFromFile", "_scope_": "attn_plugins"})
    assert isinstance(by_name, LoadProbeImage)


@pytest.mark.parametrize("key", ["seg_map_path", "depth_map_path"])
def test_a_turned_picture_with_labels(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_said", [])
    path = str(photo(tmp_path / "a.jpg", orientation=6))
    for size, name in (((30, 20), "fits"), ((20, 30), "as stored")):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.warns(UserWarning, match="to fit its labels"):
        turned = LoadProbeImage()({"img_path": path, key: str(tmp_path / "fits.png")})
    assert turned["img"].shape == (30, 20, 3)
    with pytest.raises(ValueError, match=r"a\.jpg .*its labels are 20x30"):
        LoadProbeImage()({"img_path": path, key: str(tmp_path / "as stored.png")})
    square = str(photo(tmp_path / "s.jpg", (20, 20), 6))
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "s.png")
    with pytest.raises(ValueError, match=r"s\.jpg .*do not tell"):
        LoadProbeImage(skip_unreadable=True)({"img_path": square, key: str(tmp_path / "s.png")})


@pytest.mark.parametrize("path", sorted(configs_dir().glob("*.py")), ids=lambda path: path.stem)
def test_only_imagenets_protocol_ignores_exif(path: Path) -> None:
    config = Config.fromfile(path)
    for loader in ("train", "val", "test"):
        (load,) = [
            t
            for t in config[f"{loader}_dataloader"].dataset.pipeline
            if t.type.startswith("Load") and "Image" in t.type
        ]
        assert load.get("exif", True) == (path.stem != "imagenet_linear")


def test_labels_are_checked_by_the_classes_that_there_are() -> None:
    with pytest.raises(ValueError, match="does not know the number of classes"):
        CheckLabels()({"gt_seg_map": np.zeros((1, 1), np.uint8), "seg_map_path": "m.png"})
    without: dict[str, Any] = {"img": np.zeros((1, 1, 3), np.uint8)}
    assert CheckLabels()(without) is without


def own_classes(settings: dict[str, Any], kind: str) -> dict[str, Any]:
    own: dict[str, Any] = {f"{loader}_dataloader.dataset.type": kind for loader in ("train", "val", "test")}
    own |= {f"{loader}_dataloader.dataset.metainfo.classes": OWN for loader in ("train", "val", "test")}
    return settings | own | {"model.decode_head.num_classes": 3}


@pytest.mark.slow
def test_own_classes_reach_the_label_check(backbone_file: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    """VOC's masks under three classes: labels 3 to 20 reached the loss, a device assert on CUDA."""
    settings = own_classes(options("voc2012_linear", backbone_file, roots, 1, 2), "BaseSegDataset")
    with pytest.raises(ValueError, match=r"SegmentationClass/.*\.png has labels \[\d.*expected 0 to 2 and 255"):
        here("voc2012", settings, tmp_path / "run").train()
    root = tmp_path / "mine"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("one\ntwo\n")
    for name in ("one", "two"):
        photo(root / f"JPEGImages/{name}.jpg", (96, 128))
        labels = np.random.default_rng(1).choice([0, 1, 2, 255], (96, 128)).astype(np.uint8)
        Image.fromarray(labels).save(root / f"SegmentationClass/{name}.png")
    own = settings | {f"{loader}_dataloader.dataset.data_root": root for loader in ("train", "val", "test")}
    runner = here("voc2012", own, tmp_path / "own")
    runner.train()
    (check,) = _label_checks(runner.train_dataloader.dataset)
    assert check.classes == 3


@pytest.mark.slow
def test_the_head_and_an_explicit_check_have_to_agree(
    backbone_file: Path, roots: dict[str, Path], tmp_path: Path
) -> None:
    settings = own_classes(options("voc2012_linear", backbone_file, roots, 1, 2), "BaseSegDataset")
    with pytest.raises(ValueError, match="the head has 21 classes, BaseSegDataset has 3: set model"):
        here("voc2012", settings | {"model.decode_head.num_classes": 21}, tmp_path / "a").train()
    with pytest.raises(ValueError, match="CheckLabels has classes=21, BaseSegDataset has 3: leave classes= out"):
        here("voc2012", settings | {"train_dataloader.dataset.pipeline.3.classes": 21}, tmp_path / "b").train()


def test_checks_are_found_in_wrappers(roots: dict[str, Path]) -> None:
    init_default_scope("mmseg")
    config = Config.fromfile(config_file("voc2012")).train_dataloader.dataset
    config.data_root = str(roots["voc2012"])
    config.pipeline = config.pipeline[:4]
    config.pipeline[3] = {"type": "RandomApply", "transforms": [config.pipeline[3]]}
    nested = {"type": "RepeatDataset", "times": 2, "dataset": {"type": "ConcatDataset", "datasets": [config, config]}}
    assert len(list(_label_checks(DATASETS.build(nested)))) == 2
