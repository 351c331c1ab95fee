"""A user's own folders: pairs, parts, classes, and what is wrong with the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attn_plugins.data.own import (
    Found,
    decide_classes,
    find_pairs,
    parse_values,
    part_of,
    scan_depth,
    scan_images,
    scan_masks,
)

COLOURS = {0: (64, 0, 0), 1: (0, 128, 0), 2: (0, 0, 0)}


def save(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path


def noise(seed: int, shape: tuple[int, int] = (20, 30)) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (*shape, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, masks with the values 0, 1 and 2."""
    for number in range(5):
        save(tmp_path / "images" / f"{number}.jpg", noise(number))
        save(tmp_path / "masks" / f"{number}.png", noise(number)[..., 0] % 3)
    return tmp_path


def found(values: dict[Any, int]) -> Found:
    result = Found()
    result.pixels.update(values)
    result.images.update(dict.fromkeys(values, 1))
    return result


def test_pairs_are_found_by_name_with_or_without_an_ending(folder: Path) -> None:
    pairs, problems = find_pairs(folder / "images", folder / "masks")
    assert [pair.name for pair in pairs] == list("01234") and not problems
    for mask in (folder / "masks").iterdir():
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    again, problems = find_pairs(folder / "images", folder / "masks")
    assert [(pair.name, pair.target.name) for pair in again] == [(n, f"{n}_mask.png") for n in "01234"] and not problems


def test_orphans_of_both_sides_are_told(folder: Path) -> None:
    (folder / "images" / "0.jpg").unlink()
    (folder / "masks" / "4.png").unlink()
    pairs, problems = find_pairs(folder / "images", folder / "masks")
    assert [pair.name for pair in pairs] == ["1", "2", "3"]
    assert {(p.kind, p.path.name) for p in problems} == {("orphan", "4.jpg"), ("orphan", "0.png")}


def test_folders_without_a_pair_are_refused(folder: Path) -> None:
    for mask in (folder / "masks").iterdir():
        mask.rename(mask.with_name(f"x{mask.name}"))
    with pytest.raises(
        ValueError, match=r"no image of .* has the name of a file of .*: 0, 1, 2 there, x0, x1, x2 here"
    ):
        find_pairs(folder / "images", folder / "masks")


def test_two_images_of_one_name_are_refused(folder: Path) -> None:
    save(folder / "images" / "0.png", noise(0))
    with pytest.raises(ValueError, match=r"0\.jpg and .*0\.png have the same name"):
        find_pairs(folder / "images", folder / "masks")


def test_parts_come_from_lists_folders_or_digests(tmp_path: Path) -> None:
    names = [f"{number:03d}" for number in range(50)]
    train, val = (part_of(names, part)[0] for part in ("train", "val"))
    assert len(val) == 10 and sorted(train + val) == names
    assert part_of(list(reversed(names)), "val")[0] == list(reversed(val))
    assert part_of(["train/a", "train/b", "val/c"], "val") == (["val/c"], "folder val")
    for part, chosen in (("t", ["001", "sub/002.jpg"]), ("v", ["003"])):
        (tmp_path / part).write_text("\n".join(chosen))
    lists = (tmp_path / "t", tmp_path / "v")
    assert part_of(["001", "sub/002", "003"], "train", lists=lists)[0] == ["001", "sub/002"]
    with pytest.raises(ValueError, match="lists '003', which is no image's name"):
        part_of(["001", "sub/002"], "val", lists=lists)
    with pytest.raises(ValueError, match=r"val share 1\.5"):
        part_of(names, "val", 1.5)


def test_values_are_counted_as_numpy_does(folder: Path) -> None:
    pairs, _ = find_pairs(folder / "images", folder / "masks")
    result = scan_masks(pairs)
    every = np.concatenate([np.asarray(Image.open(pair.target)).ravel() for pair in pairs])
    assert dict(result.pixels) == dict(
        zip(*(part.tolist() for part in np.unique(every, return_counts=True)), strict=True)
    )
    assert result.images == {0: 5, 1: 5, 2: 5} and result.sizes == {(20, 30): 5} and not result.problems


def test_colours_are_values_too(folder: Path) -> None:
    for mask in (folder / "masks").iterdir():
        save(mask, np.array([COLOURS[n] for n in range(3)], np.uint8)[np.asarray(Image.open(mask))])
    pairs, _ = find_pairs(folder / "images", folder / "masks")
    result = scan_masks(pairs)
    assert set(result.pixels) == set(COLOURS.values())
    with pytest.raises(ValueError, match=r"nothing tells whether[\s\S]*Give --void VALUE"):
        decide_classes(result)
    classes = decide_classes(result, void=parse_values(["#000000"]))
    assert classes.values == ((0, 128, 0), (64, 0, 0)) == classes.palette and classes.void == ((0, 0, 0),)


def test_a_palette_gives_the_classes_their_colours(folder: Path) -> None:
    for mask in (folder / "masks").iterdir():
        picture = Image.fromarray(np.asarray(Image.open(mask)))
        picture.putpalette([channel for number in range(3) for channel in COLOURS[number]])
        picture.save(mask)
    result = scan_masks(find_pairs(folder / "images", folder / "masks")[0])
    assert set(result.pixels) == {0, 1, 2}
    assert decide_classes(result, void=()).palette == tuple(COLOURS.values())


@pytest.mark.parametrize("kind", ["broken image", "broken mask", "size", "smoothed", "turned"])
def test_every_file_that_cannot_be_used_is_named(folder: Path, kind: str) -> None:
    image, mask = folder / "images" / "2.jpg", folder / "masks" / "2.png"
    if kind == "broken image":
        image.write_bytes(image.read_bytes()[:300])
    elif kind == "broken mask":
        mask.write_bytes(b"not a picture")
    elif kind == "size":
        save(mask, np.zeros((30, 20), np.uint8))
    elif kind == "smoothed":
        save(image, noise(0, (64, 64)))
        save(mask, noise(1, (64, 64)))
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(noise(2)).save(image, exif=exif)
    result = scan_masks(find_pairs(folder / "images", folder / "masks")[0])
    (problem,) = result.problems
    assert problem.path == (image if kind in ("broken image", "turned") else mask) and problem.remedy
    assert result.bad == ["2"]


def test_the_same_picture_in_both_parts_is_told(folder: Path) -> None:
    (folder / "images" / "1.jpg").write_bytes((folder / "images" / "0.jpg").read_bytes())
    result = scan_masks(find_pairs(folder / "images", folder / "masks")[0])
    (problem,) = result.same_in_both(["0", "2"], ["1", "3"])
    assert problem.kind == "overlapping-splits" and "is the same picture as 0" in problem.found
    assert not result.same_in_both(["0", "1"], ["2"])


@pytest.mark.parametrize(
    ("values", "void", "expected"),
    [
        ({0: 1, 1: 1, 255: 1}, None, (255,)),
        ({0: 1, 1: 1, 11: 1}, (11,), (11,)),
        ({0: 1, 1: 1, 255: 1}, (), ()),
    ],
)
def test_void_is_255_or_what_is_said(values: dict[int, int], void: Any, expected: tuple[int, ...]) -> None:
    classes = decide_classes(found(values), void=void)
    assert classes.void == expected
    assert classes.values == tuple(value for value in values if value not in expected)


@pytest.mark.parametrize("values", [{0: 1, 255: 1}, {0: 9, 1: 1, 11: 5}, {(0, 0, 0): 1, (255, 255, 255): 1}])
def test_where_nothing_tells_what_is_void_the_option_is_named(values: Any) -> None:
    with pytest.raises(ValueError, match=r"Give --void VALUE .* or --void none"):
        decide_classes(found(values))


@pytest.mark.parametrize(
    ("text", "values", "names"),
    [
        ("road\ncar\nsky\n", {0: 1, 2: 1, 255: 1}, {0: "road", 1: "car", 2: "sky"}),
        ("road\ncar\n", {7: 1, 21: 1, 255: 1}, {7: "road", 21: "car"}),
        ("7 road\n21: car\n3,void\n", {7: 1, 21: 1, 3: 1}, {7: "road", 21: "car"}),
        ("64 0 0 road\n0 128 0 green car\n0 0 0 Void", dict.fromkeys(COLOURS.values(), 1),
         {(64, 0, 0): "road", (0, 128, 0): "green car"}),
        ("name,r,g,b\nroad,64,0,0\ncar,0,128,0\nvoid,0,0,0", dict.fromkeys(COLOURS.values(), 1),
         {(64, 0, 0): "road", (0, 128, 0): "car"}),
    ],
)  # fmt: skip
def test_class_files_of_the_usual_kinds(tmp_path: Path, text: str, values: Any, names: Any) -> None:
    (tmp_path / "classes.txt").write_text(text)
    classes = decide_classes(found(values), tmp_path / "classes.txt")
    assert dict(zip(classes.values, classes.names, strict=True)) == names


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("road\ncar\n", {1: 1, 5: 1, 9: 1, 255: 1}, r"2 names, the masks have 3 values \(1, 5, 9\)"),
        ("0 road\n1 car", {0: 1, 1: 1, 6: 1, 255: 1}, "does not name: 6"),
        ("0 road\ncar", {0: 1, 1: 1, 255: 1}, "'car' has no value"),
        ("", {0: 1, 1: 1, 255: 1}, "names no class"),
    ],
)
def test_class_files_that_do_not_fit(tmp_path: Path, text: str, values: Any, message: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        decide_classes(found(values), tmp_path / "classes.txt")


def test_values_as_the_command_line_has_them() -> None:
    assert parse_values(["11", "128,0,64", "#80ff00"]) == (11, (128, 0, 64), (128, 255, 0))
    assert parse_values(["none"]) == ()
    with pytest.raises(ValueError, match="'red' is no value of a mask"):
        parse_values(["red"])


def test_depth_maps_are_read_as_stored(tmp_path: Path) -> None:
    for number, stored in enumerate((np.full((20, 30), 500, np.uint16), np.zeros((20, 30), np.uint16))):
        stored[0, 0] = 0
        save(tmp_path / "images" / f"{number}.jpg", noise(number))
        save(tmp_path / "depth" / f"{number}.png", stored)
    save(tmp_path / "images" / "8bit.jpg", noise(3))
    save(tmp_path / "depth" / "8bit.png", np.full((20, 30), 5, np.uint8))
    result = scan_depth(find_pairs(tmp_path / "images", tmp_path / "depth")[0])
    assert set(result.pixels) == {500}
    assert {(p.path.name, p.kind) for p in result.problems} == {("1.png", "depth"), ("8bit.png", "depth")}


def test_images_alone_are_read_too(folder: Path) -> None:
    (folder / "images" / "3.jpg").write_bytes(b"x")
    files = {path.stem: path for path in sorted((folder / "images").iterdir())}
    result = scan_images(files)
    assert result.bad == ["3"] and result.sizes == {(20, 30): 4}
