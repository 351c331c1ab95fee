"""Cityscapes as its archives unpack, with label ids, becomes the train ids that mmseg's data set reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.conversions import assert_accepted, first_items, killed_in_write, picture, save, tree
from mmseg.datasets import CityscapesDataset
from PIL import Image

from attn_plugins.cli import main
from attn_plugins.data.check import check
from attn_plugins.data.convert import convert

# Names of the label ids 0 to 33, in cityscapesScripts' order.
NAMES = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk",
    "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup",
    "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus",
    "caravan", "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip


def label_ids() -> np.ndarray:
    """[1024, 2048], every label id in a row of blocks."""
    ids: np.ndarray = np.tile((np.arange(2048) // 61).astype(np.uint8), (1024, 1))
    return ids


def unpacked(folder: Path, cities: tuple[tuple[str, str], ...] = (("train", "aachen"), ("val", "munster"))) -> None:
    """What both zips unpack to: images, and of each four files of ground truth; `test` with its dummies."""
    for split, city in (*cities, ("test", "berlin")):
        stem = f"{city}_000000_000019"
        save(folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", picture(3, 1024, 2048))
        truth = folder / "gtFine" / split / city
        for kind, pixels in (("color", picture(3, 8, 8)), ("instanceIds", label_ids()), ("labelIds", label_ids())):
            save(truth / f"{stem}_gtFine_{kind}.png", pixels)
        (truth / f"{stem}_gtFine_polygons.json").write_text("{}")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cityscapes")
    unpacked(folder)
    return folder


def test_train_ids_are_mmsegs_classes(shipped: Path, tmp_path: Path) -> None:
    before = tree(shipped)
    (problem, *_) = check("cityscapes", shipped)
    assert problem.kind == "unconverted" and f"attn-plugins data convert cityscapes {shipped} OUT" in problem.remedy
    out = tmp_path / "out"
    assert main(["data", "convert", "cityscapes", str(shipped), str(out)]) == 0
    assert set(tree(out)) == {
        f"{below}/{split}/{city}/{city}_000000_000019_{kind}.png"
        for split, city in (("train", "aachen"), ("val", "munster"))
        for below, kind in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds"))
    }
    stored = np.asarray(Image.open(out / "gtFine/val/munster/munster_000000_000019_gtFine_labelTrainIds.png"))
    classes = CityscapesDataset.METAINFO["classes"]
    told = {int(old): "" if new == 255 else classes[new] for old, new in zip(label_ids()[0], stored[0], strict=True)}
    assert told == {i: name if name in classes else "" for i, name in enumerate(NAMES)}
    assert_accepted("cityscapes", out)
    _, val = first_items("cityscapes_linear", out)
    assert set(np.unique(val["data_samples"].gt_sem_seg.data)) == {*range(19), 255}
    assert tree(shipped) == before and (out / "leftImg8bit/train/aachen").is_dir()


def test_killed_it_goes_on(shipped: Path, tmp_path: Path) -> None:
    killed_in_write(lambda: convert("cityscapes", shipped, tmp_path / "out"), 2)
    (problem, *_) = check("cityscapes", tmp_path / "out")
    assert problem.kind == "half-converted"
    done, _ = convert("cityscapes", shipped, tmp_path / "out")
    assert (done.linked, done.written, done.there) == (0, 1, 3)
    assert_accepted("cityscapes", tmp_path / "out")


def test_what_is_wrong_is_told(shipped: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(shipped, source)
    mask = source / "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png"
    save(mask, np.full((1024, 2048), 34, np.uint8))
    with pytest.raises(ValueError, match=r"labelIds.png holds \[34\], which are no label ids"):
        convert("cityscapes", source, out)
    mask.write_bytes(mask.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot read image .*labelIds\.png"):
        convert("cityscapes", source, out)
    shutil.copy(shipped / mask.relative_to(source), mask)
    convert("cityscapes", source, out)
    assert_accepted("cityscapes", out)
    mask.unlink()
    with pytest.raises(ValueError, match=r"1 of 2 masks of label ids do not exist, first .*munster"):
        convert("cityscapes", source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_train_ids_of_cityscapes_scripts_need_no_conversion(shipped: Path, tmp_path: Path) -> None:
    shutil.copytree(shipped, tmp_path / "source")
    for mask in list((tmp_path / "source/gtFine").rglob("*_labelIds.png")):
        shutil.copy(mask, mask.with_name(mask.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(ValueError, match="is nothing that cityscapes is shipped as"):
        convert("cityscapes", tmp_path / "source", tmp_path / "out")
