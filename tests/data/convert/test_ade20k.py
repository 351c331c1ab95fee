"""ADE20K's two releases: the challenge's is linked, the full one needs the authors' list of class indexes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.conversions import assert_accepted, first_items, picture, save, tree
from mmseg.datasets import ADE20KDataset
from PIL import Image

from attn_plugins.cli import main
from attn_plugins.data.check import check
from attn_plugins.data.convert import convert

# Indexes of some classes in the full data set (the class of index 774 is "door", of 783 "double door").
INDEXES = {"wall": [2978], "sky": [2420], "person": [1831], "door": [774, 783]}
UNKNOWN = 3000
SCENES = {"ADE_train_00000001": "training/a/abbey", "ADE_val_00000001": "validation/urban/street/alley"}


def seg(height: int, width: int) -> np.ndarray:
    """[H, W, 3]: columns of "wall", "sky", "person", "door", "double door", and of an object that is no class."""
    indexes = [index for each in INDEXES.values() for index in each] + [UNKNOWN]
    columns = np.array(indexes)[np.arange(width) * len(indexes) // width]
    one = np.stack([columns // 256 * 10, columns % 256, np.arange(width) % 7], axis=-1)
    return np.repeat(one[None].astype(np.uint8), height, axis=0)


def write_map(file: Path, drop: int | None = None) -> None:
    """Lines `CLASS INDEX`: those of INDEXES, and any others for the classes that the masks do not have."""
    classes = [name.strip() for name in ADE20KDataset.METAINFO["classes"]]
    lines = []
    for number, name in enumerate(classes, 1):
        if number != drop:
            lines += [f"{number}\t{index}\t   \n" for index in INDEXES.get(name, [number])]
    file.write_text("".join(lines))


def full(folder: Path, images: str) -> None:
    """`images` is images/ in the release of 2016, images/ADE/ in that of 2021; one image is large, one is not."""
    for (name, scene), (height, width) in zip(SCENES.items(), ((768, 1024), (300, 200)), strict=True):
        place = folder / images / scene
        save(place / f"{name}.jpg", picture(4, height, width))
        save(place / f"{name}_seg.png", seg(height, width))
        save(place / f"{name}_parts_1.png", seg(height, width))
        save(place / name / f"instance_000_{name}.png", picture(1, 8, 8))
        (place / f"{name}.json").write_text("{}")


@pytest.fixture(params=["ADE20K_2016_07_26/images", "ADE20K_2021_17_01/images/ADE"])
def shipped(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    full(tmp_path / "downloads", request.param)
    return tmp_path / "downloads"


def test_the_full_data_set_has_the_challenges_classes(shipped: Path, tmp_path: Path) -> None:
    write_map(shipped / "mapFromADE.txt")
    before = tree(shipped)
    (problem, *_) = check("ade20k", shipped)
    assert problem.kind == "unconverted" and f"attn-plugins data convert ade20k {shipped} OUT" in problem.remedy
    out = tmp_path / "out"
    assert main(["data", "convert", "ade20k", str(shipped), str(out)]) == 0
    assert_accepted("ade20k", out)
    assert set(tree(out)) == {
        f"{kind}/{scene.split('/')[0]}/{name}.{suffix}"
        for name, scene in SCENES.items()
        for kind, suffix in (("images", "jpg"), ("annotations", "png"))
    }
    mask = np.asarray(Image.open(out / "annotations/training/ADE_train_00000001.png"))
    assert mask.shape == (512, 683), "as convertFromADE.m: the shortest side is 512"
    classes = ["", *(name.strip() for name in ADE20KDataset.METAINFO["classes"])]
    told = [classes[i] for i in mask[0]]
    assert list(dict.fromkeys(told)) == ["wall", "sky", "person", "door", ""]
    small = next(shipped.rglob("ADE_val_00000001.jpg"))
    assert (out / "images/validation/ADE_val_00000001.jpg").read_bytes() == small.read_bytes()
    _, val = first_items("ade20k_linear", out)
    assert set(np.unique(val["data_samples"].gt_sem_seg.data)) == {0, 2, 12, 14, 255}
    assert tree(shipped) == before


def test_without_the_authors_list_it_is_refused(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Use ADEChallengeData2016\.zip.*or put the authors' mapFromADE\.txt there"):
        convert("ade20k", shipped, tmp_path / "out")
    for text, told in (
        ("1 2978\n1 2978\n", r"mapFromADE\.txt:2: .* is no class 1 to 150 of an index that no line had before"),
        ("wall 2978\n", r"mapFromADE\.txt:1: expected 'CLASS INDEX'"),
        ("1 2978\n", r"has no index for the classes \[2, 3, 4, 5, 6\]"),
    ):
        (shipped / "mapFromADE.txt").write_text(text)
        with pytest.raises(ValueError, match=told):
            convert("ade20k", shipped, tmp_path / "out")
    write_map(shipped / "mapFromADE.txt")
    next(shipped.rglob("ADE_train_00000001_seg.png")).unlink()
    with pytest.raises(ValueError, match=r"1 of 2 masks \(NAME_seg\.png\) do not exist"):
        convert("ade20k", shipped, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_challenges_release_is_linked_and_read_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "downloads/ADEChallengeData2016"
    for name, folder in (("ADE_train_00000001", "training"), ("ADE_val_00000001", "validation")):
        save(root / "images" / folder / f"{name}.jpg", picture(1, 60, 80))
        save(root / "annotations" / folder / f"{name}.png", np.full((60, 80), 150, np.uint8))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\n")
    assert_accepted("ade20k", root)
    assert not any(problem.kind == "unconverted" for problem in check("ade20k", root))
    for number, source in enumerate((root, root.parent)):
        done, _ = convert("ade20k", source, tmp_path / f"out{number}")
        assert (done.linked, done.written) == (4, 0)
        assert_accepted("ade20k", tmp_path / f"out{number}")
    (root / "annotations/validation/ADE_val_00000001.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 masks do not exist"):
        convert("ade20k", root, tmp_path / "out")
