"""Where images and boxes come from, and what resizing and cutting does to them."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from attn_plugins.analysis import images as images_module
from attn_plugins.analysis.boxes import Objects, read_coco, read_xml
from attn_plugins.analysis.images import MEAN, STD, Images, View, find_images
from attn_plugins.data.layouts.imagenet import write_imagenet
from attn_plugins.data.layouts.voc import write_voc


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc"), 3, 5, 0, (48, 64))


def test_voc_boxes_surround_the_objects_of_its_masks(voc: Path) -> None:
    images = find_images(voc)
    assert len(images) == 5 and images.annotations is not None
    for file in images.files:
        mask = np.asarray(Image.open(voc / "SegmentationObject" / f"{file.stem}.png"))
        inside = np.zeros(mask.shape, bool)
        objects = images.annotations(file)
        assert objects.size == mask.shape
        for left, top, right, bottom in objects.boxes:
            assert left == int(left) and 0 <= left < right <= 64 and 0 <= top < bottom <= 48
            inside[int(top) : int(bottom), int(left) : int(right)] = True
        assert inside[(mask > 0) & (mask < 255)].all()
    assert len(find_images(voc, "train")) == 3


def test_imagenet_and_its_localisation_boxes(tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "imagenet", 20, 20, 0, (32, 32))
    for split in ("train", "val"):
        images = find_images(root, split)
        assert len(images) == 20 and images.annotations is not None
        assert all(images.annotations(file).boxes for file in images.files)


def test_a_folder_and_coco(tmp_path: Path) -> None:
    for name in ("b/two.png", "a/one.jpg"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (40, 20), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    coco = tmp_path / "boxes.json"
    entries = [{"image_id": 7, "bbox": [10, 5, 20, 10]}, {"image_id": 7, "bbox": [0, 0, 1, 1], "iscrowd": 1}]
    coco.write_text(json.dumps({"images": [{"id": 7, "file_name": "b/two.png"}], "annotations": entries}))
    images = find_images(tmp_path, annotations=coco)
    assert [file.name for file in images.files] == ["one.jpg", "two.png"]
    assert read_coco(coco) == {"b/two.png": Objects(((10, 5, 30, 15),), (False,))}
    (batch,) = images.batches(40)
    # Twice as large and 20 cut off at the left: 10..30 becomes 0..40.
    assert batch.boxes == [[], [(0.0, 10.0, 40.0, 30.0)]]
    assert batch.pixels.shape == (2, 3, 40, 40)
    expected = (torch.tensor([1.0, 0, 0]) - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(batch.pixels[1].mean((1, 2)), expected)
    np.testing.assert_allclose(batch.rgb()[1, 20, 20], [1, 0, 0], atol=1e-6)


def test_boxes_that_the_cut_removes_are_gone(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50)).save(tmp_path / "x.png")
    corners = "".join(
        f"<{name}>{edge}</{name}>" for name, edge in zip(("xmin", "ymin", "xmax", "ymax"), (1, 1, 20, 50), strict=True)
    )
    (tmp_path / "x.xml").write_text(f"<annotation><object><bndbox>{corners}</bndbox></object></annotation>")
    assert read_xml(tmp_path / "x.xml") == Objects(((0, 0, 20, 50),), (False,))
    (batch,) = find_images(tmp_path, annotations=tmp_path).batches(50)
    assert batch.boxes == [[]]


def test_sampling_is_by_seed(voc: Path) -> None:
    images = find_images(voc)
    assert images.sample(3, 1).files == images.sample(3, 1).files
    assert set(images.sample(3, 1).files) < set(images.files)
    assert images.sample(None) is images and images.sample(99) is images


def test_progress_and_batches_stream(voc: Path) -> None:
    told = []
    sizes = [len(b.pixels) for b in find_images(voc).batches(32, 2, progress=lambda done, of: told.append((done, of)))]
    assert sizes == [2, 2, 1] and told == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    "content, says", [("<a><object/></a>", "without xmin"), ("no", "is no XML")], ids=["no box", "no xml"]
)
def test_damaged_xml_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "x.xml").write_text(content)
    with pytest.raises(ValueError, match=says):
        read_xml(tmp_path / "x.xml")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no images below"):
        find_images(tmp_path)
    (tmp_path / "coco.json").write_text("[]")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="is no COCO annotation file"):
        find_images(tmp_path, annotations=tmp_path / "coco.json")


@pytest.mark.parametrize("layout", ["ade20k", "cityscapes", "nyuv2", "kitti", "sunrgbd"])
def test_every_data_set_of_the_probes_gives_its_images_and_not_its_maps(layout: str, tmp_path: Path) -> None:
    write = getattr(importlib.import_module(f"attn_plugins.data.layouts.{layout}"), f"write_{layout}")
    root = write(tmp_path / layout, 2, 3, 0, (96, 128))
    for split, count in (("train", 2), ("val", 3)):
        images = find_images(root, split)
        assert len(images) == count and images.annotations is None
        for file in images.files:
            with Image.open(file) as image:
                assert image.mode == "RGB"


def test_no_more_than_a_batch_of_images_is_read_at_a_time(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    load = images_module._load

    def counted(file: Path, *rest: Any) -> Any:
        read.append(file)
        return load(file, *rest)

    monkeypatch.setattr(images_module, "_load", counted)
    batches = find_images(voc).batches(16, 2)
    assert read == []
    for expected in (2, 4, 5):
        next(batches)
        assert len(read) == expected


def shown(path: Path, size: int = 32) -> NDArray[np.uint8]:
    (batch,) = find_images(path).batches(size)
    out: NDArray[np.uint8] = batch.rgb()[0]
    return out


def test_pictures_are_shown_as_the_probes_read_them(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "8.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "16.png")
    np.testing.assert_array_equal(shown(tmp_path / "8.png"), shown(tmp_path / "16.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(shown(tmp_path / "turned.png"), shown(tmp_path / "8.png"))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "8.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"cannot read image .*cut\.jpg"):
        shown(tmp_path / "cut.jpg")


def test_files_that_are_no_pictures_are_left_out_and_tiny_ones_are_not(tmp_path: Path) -> None:
    for name in ("a.tif", "b.png"):
        Image.new("RGB", (3, 5)).save(tmp_path / name)
    (tmp_path / "._b.png").write_bytes(b"\x00\x05\x16\x07")
    assert [file.name for file in find_images(tmp_path).files] == ["a.tif", "b.png"]
    (batch,) = find_images(tmp_path).batches(32)
    assert batch.pixels.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("told", ["xml", "coco"])
def test_boxes_of_a_turned_picture_are_of_the_turned_one_or_an_error(tmp_path: Path, told: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)  # 20 wide and 40 high to look at

    def annotated(width: int | None, height: int | None) -> Images:
        if told == "coco":
            images = [{"id": 1, "file_name": "x.jpg", "width": width, "height": height}]
            contents = {"images": images, "annotations": [{"image_id": 1, "bbox": [5, 15, 10, 10]}]}
            (tmp_path / "boxes.json").write_text(json.dumps(contents))
            return find_images(tmp_path, annotations=tmp_path / "boxes.json")
        corners = "<xmin>6</xmin><ymin>16</ymin><xmax>15</xmax><ymax>25</ymax>"
        size = f"<size><width>{width}</width><height>{height}</height></size>" if width else ""
        (tmp_path / "x.xml").write_text(f"<a>{size}<object><bndbox>{corners}</bndbox></object></a>")
        return find_images(tmp_path, annotations=tmp_path)

    (batch,) = annotated(20, 40).batches(20)
    assert batch.boxes == [[(5.0, 5.0, 15.0, 15.0)]]
    with pytest.raises(ValueError, match=r"x\.jpg is stored as 20x40 .*its labels are 20x40"):
        next(annotated(40, 20).batches(20))
    if told == "xml":
        with pytest.raises(ValueError, match=r"x\.jpg is turned by EXIF, and its boxes do not say"):
            next(annotated(0, 0).batches(20))


BOX = "<a><object><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></a>"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'<?xml version="1.0" encoding="klingon"?><a/>', "is no XML"),
        (b'<?xml version="1.0" encoding="utf-7"?><a/>', "is no XML"),
        (b"\xff\xfe\x00", "is no XML"),
        (b"", "is no XML"),
        (b"<a>" * 100_000, "is no XML"),
        *((BOX.format(odd).encode(), "four finite numbers") for odd in ("nan", "inf", "-1e999", "x", "")),
    ],
)
def test_odd_xml_is_an_error_that_names_the_file(tmp_path: Path, content: bytes, said: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "x.xml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.xml.*{said}"):
        next(find_images(tmp_path, annotations=tmp_path).batches(8))


ODD_BOXES = (
    b"[NaN,0,1,1]",
    b"[0,0,1]",
    b"[0,0,Infinity,1]",
    b'"abcd"',
    b"3",
    b"null",
    b'["x",0,1,1]',
    b"[1e999,0,1,1]",
)
COCO = b'{"images": [{"id": 1, "file_name": "x.png"}], "annotations": [{"image_id": 1, "bbox": %s}]}'


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"\xff\xfe",
        b"9" * 10_000,
        b'{"images": [3], "annotations": []}',
        b'{"images": [{"id": 1, "file_name": 3}], "annotations": []}',
        b'{"images": [{"id": [], "file_name": "x.png"}], "annotations": []}',
        b'{"images": [], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}',
        *(COCO % box for box in ODD_BOXES),
    ],
)
def test_odd_coco_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "coco.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"coco\.json"):
        find_images(tmp_path, annotations=tmp_path / "coco.json")


def test_a_folder_called_like_a_picture_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png" / "y.png")
    assert [file.name for file in find_images(tmp_path).files] == ["y.png"]


def test_a_split_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"val\.txt is no readable text"):
        find_images(tmp_path)


BOXED = (
    "<a>{}<object><difficult>{}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    "</object></a>"
)


def test_boxes_of_a_picture_of_another_size_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "x.png")
    size = "<size><width>{}</width><height>{}</height></size>"
    for said in (size.format(40, 20), size.format(0, 0), ""):
        (tmp_path / "x.xml").write_text(BOXED.format(said, 0))
        (batch,) = find_images(tmp_path, annotations=tmp_path).batches(20)
        assert batch.objects == [(((0.0, 0.0, 9.0, 9.0),), (20, 40))]
    (tmp_path / "x.xml").write_text(BOXED.format(size.format(80, 40), 0))
    with pytest.raises(ValueError, match=r"x\.png is 20x40 and its annotation is of a picture of 40x80"):
        next(find_images(tmp_path, annotations=tmp_path).batches(20))


def test_a_folder_like_voc_without_splits_has_its_boxes(tmp_path: Path) -> None:
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "JPEGImages" / "x.png")
    (tmp_path / "Annotations" / "x.xml").write_text(BOXED.format("", 1))
    images = find_images(tmp_path)
    assert images.annotations is not None and images.annotations(images.files[0]).difficult == (True,)


def test_masks_follow_their_pictures(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    ramp = np.arange(60, dtype=np.uint8)[None].repeat(30, 0)
    Image.fromarray(ramp).convert("RGB").save(tmp_path / "images" / "x.png")
    mask = Image.fromarray(ramp)
    mask.putpalette(list(range(256)) * 3)
    mask.save(tmp_path / "masks" / "x.png")
    images = find_images(tmp_path / "images", masks=tmp_path / "masks")
    (batch,) = images.batches(30)
    assert (
        batch.masks is not None
        and batch.masks.dtype == torch.int64
        and batch.masks[0, 7].tolist() == list(range(15, 45))
    )
    (batch,) = images.batches(View(20, 60))
    assert batch.masks is not None and batch.masks.shape == (1, 20, 20)
    mask.resize((30, 30)).save(tmp_path / "masks" / "x.png")
    with pytest.raises(ValueError, match=r"x\.png is 30x30, and .*x\.png, over which it lies, 30x60"):
        next(images.batches(30))
    Image.new("RGB", (60, 30)).save(tmp_path / "masks" / "x.png")
    with pytest.raises(ValueError, match="a mask has one channel"):
        next(images.batches(30))
    with pytest.raises(FileNotFoundError, match="has no PNG file"):
        find_images(tmp_path / "images", masks=tmp_path / "nowhere")
    (tmp_path / "masks" / "x.png").rename(tmp_path / "masks" / "y.png")
    with pytest.raises(ValueError, match=r"no mask below .* is called x\.png"):
        next(find_images(tmp_path / "images", masks=tmp_path / "masks").batches(30))


def test_what_a_view_cannot_be() -> None:
    with pytest.raises(ValueError, match="resize=20 is below size=30"):
        View(30, 20)
    with pytest.raises(ValueError, match="size=0"):
        View(0)
