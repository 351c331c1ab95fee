"""Kaggle's ImageNet, laid out as its archive unpacks, becomes class folders."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from helpers.conversions import assert_accepted, first_items, picture, save, tree

from attn_plugins.cli import main
from attn_plugins.data.check import check
from attn_plugins.data.convert import convert

CLASSES = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}
VAL = {"ILSVRC2012_val_00000001": "n01443537", "ILSVRC2012_val_00000002": "n01440764"}


def unpacked(folder: Path) -> None:
    """Images, boxes and the two tables; the solution names an image's class before each of its boxes."""
    data, boxes = folder / "ILSVRC/Data/CLS-LOC", folder / "ILSVRC/Annotations/CLS-LOC"
    for wnid in CLASSES:
        for number in (18, 7):
            save(data / "train" / wnid / f"{wnid}_{number}.JPEG", picture(number, 60, 80))
        (boxes / "train" / wnid).mkdir(parents=True)
        (boxes / "train" / wnid / f"{wnid}_18.xml").write_text("<annotation/>")
    (boxes / "val").mkdir()
    for name in VAL:
        save(data / "val" / f"{name}.JPEG", picture(2, 60, 80))
        (boxes / "val" / f"{name}.xml").write_text("<annotation/>")
    save(data / "test" / "ILSVRC2012_test_00000001.JPEG", picture(2, 60, 80))
    (folder / "LOC_synset_mapping.txt").write_text("".join(f"{w} {names}\n" for w, names in CLASSES.items()))
    (folder / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000002,n01440764 85 1 499 272 \n"
        "ILSVRC2012_val_00000001,n01443537 131 0 499 254 n01443537 3 4 5 6 \n"
    )


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    unpacked(tmp_path / "kaggle")
    return tmp_path / "kaggle"


def test_validation_images_are_sorted_into_class_folders(shipped: Path, tmp_path: Path) -> None:
    before = tree(shipped)
    (problem, *_) = check("imagenet", shipped)
    assert problem.kind == "unconverted" and f"attn-plugins data convert imagenet {shipped} OUT" in problem.remedy
    out = tmp_path / "out"
    assert main(["data", "convert", "imagenet", str(shipped), str(out)]) == 0
    assert set(tree(out)) == {
        *(f"train/{wnid}/{wnid}_{number}.JPEG" for wnid in CLASSES for number in (7, 18)),
        *(f"Annotations/CLS-LOC/train/{wnid}/{wnid}_18.xml" for wnid in CLASSES),
        *(f"val/{wnid}/{name}.JPEG" for name, wnid in VAL.items()),
        *(f"Annotations/CLS-LOC/val/{name}.xml" for name in VAL),
    }
    original = shipped / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG"
    assert (out / "val/n01443537/ILSVRC2012_val_00000001.JPEG").samefile(original)
    assert tree(shipped) == before


def test_the_check_accepts_it_and_the_probe_reads_it(shipped: Path, tmp_path: Path) -> None:
    convert("imagenet", shipped, tmp_path / "out")
    assert_accepted("imagenet", tmp_path / "out")
    train, val = first_items("imagenet_linear", tmp_path / "out")
    assert train["inputs"].shape == (3, 224, 224)
    assert int(val["data_samples"].gt_label) == 0, "the first class folder's"


def test_interrupted_and_without_links_it_goes_on(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def refuse(source: str, target: Path) -> None:
        made.append(target)
        raise OSError(errno.EXDEV if len(made) != 3 else errno.ENOSPC, "no")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ValueError, match="once that is mended, the same command goes on"):
        convert("imagenet", shipped, tmp_path / "out")
    (problem, *_) = check("imagenet", tmp_path / "out")
    assert problem.kind == "half-converted"
    done, _ = convert("imagenet", shipped, tmp_path / "out")
    assert (done.there, done.linked, done.copied) == (2, 0, 8)
    assert_accepted("imagenet", tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("LOC_val_solution.csv", "n01440764", "n99999999", r"solution\.csv:2: .* names 0 of the classes"),
        ("LOC_val_solution.csv", "n01443537 3 4", "n01440764 3 4", r"solution\.csv:3: .* names 2 of the classes"),
        ("LOC_val_solution.csv", "00000002,", "00000009,", r"1 of 2 images of LOC_val_solution\.csv do not exist"),
        ("LOC_val_solution.csv", "ImageId", "Id", r"not with ImageId,PredictionString"),
        ("LOC_synset_mapping.txt", "n01443537", "n01443538", r"names 0 of the classes"),
        ("LOC_synset_mapping.txt", "n01440764", "n01000000 dog\nn01440764", "2 class folders, .* names 3.*n01000000"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    shipped: Path, tmp_path: Path, file: str, old: str, new: str, told: str
) -> None:
    (shipped / file).write_text((shipped / file).read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=told):
        convert("imagenet", shipped, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_missing_is_named(shipped: Path, tmp_path: Path) -> None:
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        text = (shipped / name).read_text()
        (shipped / name).unlink()
        with pytest.raises(ValueError, match=f"{name} does not exist"):
            convert("imagenet", shipped, tmp_path / "out")
        (shipped / name).write_text(text)
