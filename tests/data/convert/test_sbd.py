"""VOC 2012 and SBD, laid out as their archives unpack, become the augmented training set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.conversions import assert_accepted, first_items, picture, save, tree
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SBDataset

from attn_plugins.cli import main
from attn_plugins.data.check import check
from attn_plugins.data.convert import convert

TRAINAUG = {
    "train_dataloader.dataset.ann_file": "ImageSets/Segmentation/trainaug.txt",
    "train_dataloader.dataset.data_prefix.seg_map_path": "SegmentationClassAug",
}
# VOC trains on a and validates on v; SBD trains on a, b and v, and validates on c.
VOC = {"train": ["2007_a"], "val": ["2007_v"]}
SBD = {"train": ["2007_a", "2008_b", "2007_v"], "val": ["2008_c"]}


def ids(first: int) -> np.ndarray:
    """[60, 80] class ids: three stripes of 0, `first` and `first` + 1."""
    stripes: np.ndarray = np.repeat(np.array([0, first, first + 1], np.uint8), 20)[:, None].repeat(80, axis=1)
    return stripes


def unpacked(folder: Path) -> None:
    """VOCdevkit/VOC2012 with void borders in its own masks, and benchmark_RELEASE/dataset, without."""
    voc, sbd = folder / "VOCdevkit/VOC2012", folder / "benchmark_RELEASE/dataset"
    for number, name in enumerate(("2007_a", "2007_v", "2008_b", "2008_c", "2012_other")):
        save(voc / "JPEGImages" / f"{name}.jpg", picture(number, 60, 80))
        (voc / "Annotations").mkdir(exist_ok=True)
        (voc / "Annotations" / f"{name}.xml").write_text("<annotation/>")
    for kind, names in VOC.items():
        (voc / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (voc / "ImageSets/Segmentation" / f"{kind}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            mask = ids(5)
            mask[18:22] = 255
            save(voc / "SegmentationClass" / f"{name}.png", mask)
    for kind, names in SBD.items():
        (sbd / "cls").mkdir(parents=True, exist_ok=True)
        (sbd / f"{kind}.txt").write_text("".join(f"{name}\n" for name in names))
        for number, name in enumerate(names):
            save(sbd / "img" / f"{name}.jpg", picture(number, 60, 80))
            content = {"Boundaries": np.zeros((20, 1)), "Segmentation": ids(8 + number), "CategoriesPresent": [[8]]}
            savemat(sbd / "cls" / f"{name}.mat", {"GTcls": content}, do_compression=True)


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    unpacked(tmp_path / "downloads")
    return tmp_path / "downloads"


def test_the_augmented_set_has_vocs_masks_where_there_are_any(shipped: Path, tmp_path: Path) -> None:
    before = tree(shipped)
    (problem, *_) = check("voc2012", shipped)
    assert problem.kind == "unconverted" and f"attn-plugins data convert voc2012 {shipped} OUT" in problem.remedy
    out = tmp_path / "out"
    assert main(["data", "convert", "voc2012", str(shipped), str(out)]) == 0
    assert (out / "ImageSets/Segmentation/trainaug.txt").read_text().split() == ["2007_a", "2008_b", "2008_c"]
    assert (out / "ImageSets/Segmentation/train.txt").read_text().split() == VOC["train"]
    augmented = out / "SegmentationClassAug"
    assert {path.stem for path in augmented.iterdir()} == {"2007_a", "2008_b", "2008_c"}
    assert (augmented / "2007_a.png").samefile(shipped / "VOCdevkit/VOC2012/SegmentationClass/2007_a.png")
    theirs = SBDataset(str(shipped / "benchmark_RELEASE/dataset"), "train", mode="segmentation")
    np.testing.assert_array_equal(np.asarray(Image.open(augmented / "2008_b.png")), np.asarray(theirs[1][1]))
    assert (out / "Annotations/2012_other.xml").is_file() and (out / "JPEGImages/2012_other.jpg").is_file()
    assert tree(shipped) == before


def test_the_check_accepts_it_and_the_probe_trains_on_it(shipped: Path, tmp_path: Path) -> None:
    convert("voc2012", shipped, tmp_path / "out")
    assert_accepted("voc2012", tmp_path / "out")
    for changes in ({}, TRAINAUG):
        train, val = first_items("voc2012_linear", tmp_path / "out", changes)
        assert {5, 6} & set(np.unique(train["data_samples"].gt_sem_seg.data))
        assert set(np.unique(val["data_samples"].gt_sem_seg.data)) == {0, 5, 6, 255}


def test_sbd_where_mmseg_wants_it(shipped: Path, tmp_path: Path) -> None:
    (shipped / "benchmark_RELEASE/dataset").rename(shipped / "VOCdevkit/VOCaug")
    (shipped / "VOCdevkit/VOCaug").rename(shipped / "VOCdevkit/dataset")
    (shipped / "VOCdevkit/VOCaug").mkdir()
    (shipped / "VOCdevkit/dataset").rename(shipped / "VOCdevkit/VOCaug/dataset")
    done, notes = convert("voc2012", shipped, tmp_path / "out")
    assert done.written == 5 and "3 images in trainaug.txt, 2 of them with SBD's masks" in notes[0]


def test_what_is_wrong_is_told(shipped: Path, tmp_path: Path) -> None:
    out, cls = tmp_path / "out", shipped / "benchmark_RELEASE/dataset/cls"
    kept = (cls / "2008_c.mat").read_bytes()
    (cls / "2008_c.mat").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 masks of SBD do not exist, first .*2008_c\.mat"):
        convert("voc2012", shipped, out)
    assert not out.exists()
    for content, told in (
        ({"GTinst": {"Segmentation": ids(8)}}, r"has no GTcls\.Segmentation: use SBD's cls/"),
        ({"GTcls": {"Segmentation": ids(200)}}, r"from 0 to 201 are no ids 0\.\.20"),
    ):
        savemat(cls / "2008_c.mat", content)
        with pytest.raises(ValueError, match=told):
            convert("voc2012", shipped, out)
        assert not (out / "ImageSets/Segmentation/trainaug.txt").exists()
    (cls / "2008_c.mat").write_bytes(kept)
    convert("voc2012", shipped, out)
    assert_accepted("voc2012", out)


@pytest.mark.parametrize(
    "changed", ["VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "benchmark_RELEASE/dataset/val.txt"]
)
def test_with_other_lists_it_is_not_continued(shipped: Path, tmp_path: Path, changed: str) -> None:
    convert("voc2012", shipped, tmp_path / "out")
    with (shipped / changed).open("a") as file:
        file.write("2007_a\n")
    with pytest.raises(FileExistsError, match="was converted from something else"):
        convert("voc2012", shipped, tmp_path / "out")
