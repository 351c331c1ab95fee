"""One way to read a picture: every kind of file gives the same tones, EXIF is never a guess, a broken one is named."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from attn_plugins.data import images
from attn_plugins.data.images import decode_image, is_image_file, read_image

RAMP = np.tile(np.linspace(0, 255, 48).round().astype(np.uint8), (32, 1))
COLOUR = np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 90)], -1)
SIXTEEN = RAMP.astype(np.uint16) * 257


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_said", [])


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def grey(form: str = "PNG") -> bytes:
    return encoded(Image.fromarray(RAMP), form)


def tiff16(big: bool) -> bytes:
    picture = Image.frombytes("I;16B" if big else "I;16", (48, 32), SIXTEEN.astype(">u2" if big else "<u2").tobytes())
    return encoded(picture, "TIFF")


def grey_palette() -> bytes:
    picture = Image.fromarray(RAMP).convert("P")
    picture.putpalette([value for value in range(256) for _ in range(3)])
    return encoded(picture, transparency=3)


GREY: dict[str, Callable[[], bytes]] = {
    "8 bits": grey,
    "16-bit PNG": lambda: encoded(Image.fromarray(SIXTEEN)),
    "16-bit TIFF": lambda: tiff16(False),
    "16-bit TIFF, big-endian": lambda: tiff16(True),
    "16-bit PNG of OpenCV": lambda: cv2.imencode(".png", SIXTEEN)[1].tobytes(),
    "8-bit TIFF": lambda: grey("TIFF"),
    "BMP": lambda: grey("BMP"),
    "palette with transparency": grey_palette,
    "grey with alpha": lambda: encoded(Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (48, 32), 7)])),
}


@pytest.mark.parametrize("kind", GREY)
def test_grey_of_every_kind_has_the_same_tones(kind: str) -> None:
    read = decode_image(GREY[kind](), "x", exif=True)
    assert read.dtype == np.uint8 and read.shape == (32, 48, 3)
    np.testing.assert_array_equal(read, np.repeat(RAMP[..., None], 3, -1))


@pytest.mark.parametrize(
    ("content", "tolerance"),
    [
        (encoded(Image.fromarray(COLOUR)), 0),
        (encoded(Image.fromarray(COLOUR).convert("RGBA")), 0),
        (encoded(Image.fromarray(COLOUR), "WEBP", lossless=True), 0),
        (encoded(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), 1),
        (encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=100, subsampling=0), 4),
        (cv2.imencode(".png", COLOUR[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), 0),
    ],
    ids=["RGB", "RGBA", "WebP", "CMYK TIFF", "CMYK JPEG", "16-bit RGB"],
)
def test_colours_of_every_kind(content: bytes, tolerance: int) -> None:
    read = decode_image(content, "x", exif=True).astype(int)
    assert np.abs(read - COLOUR).max() <= tolerance


def test_jpegs_are_read_as_opencv_and_mmcv_read_them() -> None:
    content = encoded(Image.fromarray(COLOUR), "JPEG", quality=60)
    theirs = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert theirs is not None
    np.testing.assert_array_equal(decode_image(content, "x", exif=False), theirs[..., ::-1])


def turned(orientation: int, size: tuple[int, int] = (32, 48), form: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(COLOUR[: size[0], : size[1]]), form, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_where_it_is_asked_to(orientation: int) -> None:
    content = turned(orientation)
    np.testing.assert_array_equal(decode_image(content, "x", exif=False), COLOUR)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(decode_image(content, "x", exif=True), expected)
    assert expected.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3))


def test_a_turned_picture_is_turned_where_that_fits_its_labels_and_this_is_said_once() -> None:
    with pytest.warns(UserWarning, match="a.jpg is stored as 32x48 and turned by its EXIF orientation 6 to fit"):
        read = decode_image(turned(6), "a.jpg", exif=True, over=lambda: (48, 32))
    assert read.shape == (48, 32, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(turned(8), "b.jpg", exif=True, over=lambda: (48, 32))
        decode_image(turned(1), "c.jpg", exif=True, over=lambda: (32, 48))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [(32, 32), (32, 48)], ids=["square", "oblong"])
def test_a_turned_picture_whose_labels_do_not_tell_is_an_error(orientation: int, size: tuple[int, int]) -> None:
    message = "do not tell" if orientation < 5 or size == (32, 32) else "its labels are 32x48"
    with pytest.raises(ValueError, match=rf"a\.jpg is stored as 32x.*EXIF orientation {orientation}.*{message}"):
        decode_image(turned(orientation, size), "a.jpg", exif=True, over=lambda: size)


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "no picture": b"<html>404</html>",
    "AppleDouble": b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X",
    "half a JPEG": encoded(Image.fromarray(np.repeat(RAMP, 16, 0)), "JPEG")[:700],
    "half a PNG": grey()[:60],
    "half a TIFF": grey("TIFF")[:90],
    "float": encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "32-bit": encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some training libraries leave it
    (tmp_path / "cut.jpg").write_bytes(BROKEN[kind])
    with pytest.raises(ValueError, match=r"cannot read image .*cut\.jpg: ") as told:
        read_image(tmp_path / "cut.jpg", exif=True)
    assert isinstance(told.value, OSError), "as whoever catches Pillow's errors expects"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_bomb_a_folder_and_nothing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.png").write_bytes(grey())
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("bomb.png", "folder.png", "nothing.png"):
        with pytest.raises(ValueError, match=rf"cannot read image .*{name}"):
            read_image(tmp_path / name, exif=True)


def test_damage_anywhere_is_an_error_that_names_the_file_or_a_picture() -> None:
    rng = np.random.default_rng(0)
    contents = [turned(6, form=form) for form in ("PNG", "JPEG", "TIFF", "WEBP")] + [GREY[k]() for k in GREY]
    outcomes = {"read": 0, "named": 0}
    for number in range(400):
        content = bytearray(contents[number % len(contents)])
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] = rng.integers(256)
        if number % 3 == 0:
            content = content[: rng.integers(len(content))]
        try:
            assert decode_image(bytes(content), "x.png", exif=True).shape[2] == 3
            outcomes["read"] += 1
        except ValueError as error:
            assert "x.png" in str(error)
            outcomes["named"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_which_files_are_pictures(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.TIF", "c.tiff", "d.JPEG", "._a.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "x.png").mkdir()
    found = {path.name for path in tmp_path.iterdir() if is_image_file(path)}
    assert found == {"a.jpg", "b.TIF", "c.tiff", "d.JPEG", ".hidden.png"}
