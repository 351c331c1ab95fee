"""A clean root of every data set has no problems; every way of breaking one is named, with a remedy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attn_plugins.cli import main
from attn_plugins.cli.data import DATASETS
from attn_plugins.data.check import CHECKS, check
from attn_plugins.data.layouts import LAYOUTS
from attn_plugins.data.layouts.depth import rotate_right
from attn_plugins.data.layouts.imagenet import write_imagenet
from attn_plugins.data.layouts.voc import voc_palette

from .made import Made

Break = Callable[[Path], object]


def each(pattern: str, change: Callable[[Path], object]) -> Break:
    """Break every file that matches."""

    def apply(root: Path) -> None:
        paths = sorted(root.glob(pattern))
        assert paths, f"{pattern} matches nothing"
        for path in paths:
            change(path)

    return apply


def first(pattern: str, change: Callable[[Path], object]) -> Break:
    """Break the first file that matches."""
    return lambda root: change(sorted(root.glob(pattern))[0])


def pixels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        stored = change(np.asarray(Image.open(path)))
        Image.fromarray(stored).save(path)

    return apply


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_text(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new))


def to_jpeg(path: Path) -> None:
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()


def to_archive(path: Path) -> None:
    path.rename(path.parents[1] / "n01440764.tar")


def split_archive(root: Path) -> None:
    truth = root / "data_depth_annotated"
    for split, drive in (("train", "2011_09_26_drive_0001_sync"), ("val", "2011_09_26_drive_0002_sync")):
        (truth / split).mkdir()
        (truth / drive).rename(truth / split / drive)


def flatten_val(root: Path) -> None:
    for path in sorted(root.glob("val/*/*")):
        path.rename(root / "val" / path.name)
    for folder in [path for path in (root / "val").iterdir() if path.is_dir()]:
        folder.rmdir()


def flat_val_without_labels(root: Path) -> None:
    flatten_val(root)
    (root / "meta" / "val.txt").unlink()


def flat_val_with(text: Callable[[str], str]) -> Break:
    def apply(root: Path) -> None:
        flatten_val(root)
        labels = root / "meta" / "val.txt"
        labels.write_text(text(labels.read_text()))

    return apply


def scaled(factor: float) -> Callable[[Path], None]:
    return pixels(lambda d: np.clip(np.rint(d.astype(np.float64) * factor), 0, 65535).astype(np.uint16))


def resize(path: Path) -> None:
    Image.open(path).resize((30, 20), Image.Resampling.NEAREST).save(path)


def rmtree(name: str) -> Break:
    return lambda root: shutil.rmtree(root / name)


LOST_PALETTE = pixels(lambda ids: np.asarray(Image.fromarray(voc_palette()[ids]).convert("L")))
COLOURS = pixels(lambda ids: voc_palette()[ids])
VOC_SPLIT, VOC_MASKS = "ImageSets/Segmentation/val.txt", "SegmentationClass/*.png"
ADE_MASKS, TRAIN_IDS = "annotations/*/*.png", "gtFine/*/*/*labelTrainIds.png"
NYU_SPLIT, NYU_DEPTH = "nyudepthv2_test_files_with_gt.txt", "official_splits/test/*/*.png"
KITTI_SPLIT, KITTI_DEPTH = "eigen_test_files_with_gt.txt", "data_depth_annotated/*/*/*/*/*.png"
SUN_SPLIT, SUN_DEPTH = "SUNRGBD_val_splits.txt", "SUNRGBD/*/*/*/depth_bfx/*.png"

# data set, what is done to a copy of a clean root, the kind of problem, and what its text must tell.
BROKEN: list[tuple[str, Break, str, str]] = [
    ("voc2012", rmtree("SegmentationClass"), "missing-folder", "SegmentationClass"),
    ("voc2012", first(VOC_SPLIT, Path.unlink), "missing-split", "val.txt"),
    ("voc2012", first(VOC_SPLIT, lambda p: p.write_text("\n")), "empty-split", "val.txt"),
    ("voc2012", first(VOC_SPLIT, replace_text("2012_", "a b 2012_")), "malformed-split", "first line 1"),
    ("voc2012", first("JPEGImages/*.jpg", Path.unlink), "missing-files", "1 of the 22 images"),
    ("voc2012", first(VOC_MASKS, Path.unlink), "missing-files", "1 of the 22 masks"),
    ("voc2012", first("JPEGImages/*.jpg", truncate), "unreadable", "truncated"),
    ("voc2012", first("JPEGImages/*.jpg", lambda p: p.write_bytes(b"")), "unreadable", "empty file"),
    ("voc2012", first(VOC_MASKS, truncate), "unreadable", "2012_000001.png"),
    ("voc2012", first(VOC_MASKS, resize), "size-mismatch", "30x20"),
    ("voc2012", each(VOC_MASKS, COLOURS), "colour-mask", "RGB"),
    ("voc2012", each(VOC_MASKS, LOST_PALETTE), "label-range", "0..20"),
    ("ade20k", rmtree("images/validation"), "missing-folder", "does not exist"),
    ("ade20k", first("annotations/training/*.png", Path.unlink), "missing-files", "1 of the 22 masks"),
    ("ade20k", each(ADE_MASKS, COLOURS), "colour-mask", "_seg.png"),
    ("ade20k", each(ADE_MASKS, pixels(lambda ids: ids - np.uint8(1))), "label-range", "reduced already"),
    ("cityscapes", rmtree("leftImg8bit/val"), "missing-folder", "val"),
    ("cityscapes", each(TRAIN_IDS, Path.unlink), "label-ids-only", "csCreateTrainIdLabelImgs"),
    ("cityscapes", each("gtFine/*/*/*.png", Path.unlink), "missing-files", "22 of the 22 masks"),
    ("cityscapes", each(TRAIN_IDS, pixels(lambda ids: ids % np.uint8(19) + np.uint8(7))), "label-range", "label ids"),
    ("cityscapes", each(TRAIN_IDS, COLOURS), "colour-mask", "gtFine_color"),
    ("nyuv2", rmtree("official_splits"), "missing-folder", "official_splits"),
    ("nyuv2", first(NYU_SPLIT, Path.unlink), "missing-split", "518.8579"),
    ("nyuv2", first(NYU_SPLIT, replace_text("_00001", "_99999")), "missing-files", "99999"),
    ("nyuv2", each(NYU_DEPTH, scaled(0.256)), "depth-scale", "1/256 m"),
    ("nyuv2", each(NYU_DEPTH, scaled(5)), "depth-scale", "1/5000 m"),
    ("nyuv2", each(NYU_DEPTH, pixels(lambda d: (d / 40).astype(np.uint8))), "depth-not-16-bit", "L picture"),
    ("nyuv2", first(NYU_DEPTH, pixels(np.zeros_like)), "depth-empty", "1 of 20"),
    ("nyuv2", first(NYU_DEPTH, truncate), "unreadable", "sync_depth"),
    ("kitti", split_archive, "kitti-not-merged", "mv "),
    ("kitti", first(KITTI_SPLIT, replace_text(" ", "_")), "malformed-split", "first line 1"),
    ("kitti", first("eigen_train_files_with_gt.txt", replace_text("2011_09_26_drive_0001_sync/proj_depth/groundtruth/"
     "image_02/0000000005.png", "None")), "malformed-split", "1 training lines have no depth"),
    ("kitti", each("2011_09_26/*/image_02/data/*.png", to_jpeg), "missing-files", "0000000005.jpg is there instead"),
    ("kitti", each(KITTI_DEPTH, scaled(1000 / 256)), "depth-scale", "millimetres"),
    ("kitti", each(KITTI_DEPTH, pixels(lambda d: (d // 256).astype(np.uint8))), "depth-not-16-bit", "16-bit"),
    ("kitti", first("data_depth_velodyne/*/*/*/*/*.png", Path.unlink), "missing-files", "1 of the 22 raw depth maps"),
    ("kitti", first("2011_09_26/*_0002_sync/image_02/data/0000000019.png", Path.unlink), "missing-files", "without"),
    ("sunrgbd", first(SUN_SPLIT, Path.unlink), "missing-split", "NYU0001"),
    ("sunrgbd", first(SUN_SPLIT, lambda p: p.write_text("")), "empty-split", "is empty"),
    ("sunrgbd", first(SUN_DEPTH, Path.unlink), "missing-files", "1 of the"),
    ("sunrgbd", each(SUN_DEPTH, pixels(rotate_right)), "depth-not-rotated", "rotated left by 3"),
    ("sunrgbd", each(SUN_DEPTH, pixels(lambda d: d // 8 // 8 * 8)), "depth-scale", "deep"),
    ("imagenet", rmtree("val"), "missing-folder", "val"),
    ("imagenet", first("train/*/*", to_archive), "not-unpacked", "tar -xf"),
    ("imagenet", first("val/*/*", lambda path: path.rename(path.parents[1] / path.name)), "val-mixed", "1 images"),
    ("imagenet", rmtree("train/n01440764"), "class-mismatch", "n01440764"),
    ("imagenet", each("train/n01440764/*", Path.unlink), "empty-class", "1 of 20"),
    ("imagenet", first("train/n01443537/*", truncate), "unreadable", "truncated"),
    ("imagenet", flat_val_without_labels, "val-unlabelled", "valprep"),
    ("imagenet", flat_val_with(lambda t: "".join(t.splitlines(True)[1:])), "val-unlabelled", "1 of 20"),
    ("imagenet", flat_val_with(lambda t: t.replace("JPEG 19\n", "JPEG 20\n")), "label-range", "0..19"),
    ("imagenet", flat_val_with(lambda t: t + "ILSVRC2012_val_00050001.JPEG 3\n"), "missing-files", "1 of the 21"),
]  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_clean_root_has_no_problems(made: Made, name: str) -> None:
    assert check(name, made.roots[name]) == []


def test_a_clean_flat_imagenet_has_no_problems(tmp_path: Path) -> None:
    assert check("imagenet", write_imagenet(tmp_path / "i", 20, 20, 0, (32, 32), flat_val=True)) == []


@pytest.mark.parametrize(
    ("name", "damage", "kind", "told"),
    BROKEN,
    ids=[f"{name}-{kind}-{i}" for i, (name, _, kind, _) in enumerate(BROKEN)],
)
def test_damage_is_named_with_a_remedy(
    made: Made, tmp_path: Path, name: str, damage: Break, kind: str, told: str
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made.roots[name], root)
    damage(root)
    problems = check(name, root)
    assert kind in {problem.kind for problem in problems}
    told_by = [problem for problem in problems if problem.kind == kind and told in str(problem)]
    assert told_by, [str(problem) for problem in problems]
    assert all(problem.remedy for problem in problems)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_parent_or_a_child_given_as_root_is_recognised(made: Made, name: str) -> None:
    root = made.roots[name]
    child = next(path for path in sorted(root.iterdir()) if path.is_dir())
    for given in (root.parent, child):
        (problem,) = check(name, given)
        assert problem.kind == "wrong-folder"
        assert str(root) in problem.remedy


def test_a_root_that_is_nothing(tmp_path: Path) -> None:
    for name in LAYOUTS:
        assert [p.kind for p in check(name, tmp_path / "none")] == ["missing-root"]
        (tmp_path / name).mkdir()
        assert [p.kind for p in check(name, tmp_path / name)] == ["wrong-folder"]


def test_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'mnist'; known: voc2012, ade20k"):
        check("mnist", tmp_path)


def test_the_transferred_probe_needs_no_training_split(made: Made, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made.roots["sunrgbd"], root)
    (root / "SUNRGBD_train_splits.txt").unlink()
    assert check("sunrgbd", root) == []


def test_layouts_checks_and_command_know_the_same_data_sets() -> None:
    assert list(LAYOUTS) == list(CHECKS) == list(DATASETS)


def test_command_makes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ["data", "make", "voc2012", str(tmp_path), "--num-train", "2", "--num-val", "1", "--size", "48", "64"]
    assert main(made) == 0
    root = tmp_path / "VOCdevkit" / "VOC2012"
    assert f"data root: {root}" in capsys.readouterr().out
    assert main(["data", "check", "voc2012", str(root)]) == 0
    assert "no problems found" in capsys.readouterr().out

    (root / "JPEGImages" / "2012_000001.jpg").unlink()
    assert main(["data", "check", "voc2012", str(root)]) == 1
    out = capsys.readouterr().out
    assert "1 of the 2 images" in out and "remedy: " in out and "1 problem(s)" in out

    assert main([*made, "--seed", "1"]) == 2
    assert "seed=0 there, 1 asked for" in capsys.readouterr().err
