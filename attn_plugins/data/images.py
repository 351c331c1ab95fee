"""The one way in which probes, data checks, analyses and predictions read a picture."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

__all__ = ["SUFFIXES", "ImageError", "TurnedImageError", "decode_image", "is_image_file", "opened", "read_image"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_ORIENTATION = 0x0112
# What EXIF's orientations 5 to 8 have in common: rows become columns.
_SIDEWAYS = frozenset({5, 6, 7, 8})
# What Pillow raises on pictures that are broken in one of a hundred ways; SyntaxError on a PNG.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError, TypeError, OverflowError,
    MemoryError, AttributeError, AssertionError, ZeroDivisionError, RecursionError, Image.DecompressionBombError,
)  # fmt: skip


def is_image_file(path: Path) -> bool:
    """Whether a path is a file with a picture's suffix; ``._x.jpg``, which macOS leaves beside ``x.jpg``, is none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._") and path.is_file()


Size = tuple[int, int]


class ImageError(OSError, ValueError):
    """A picture that cannot be used, by name: an OSError, as Pillow raises, and a ValueError, as commands report."""


class TurnedImageError(ImageError):
    """A picture that EXIF turns, and labels that do not say whether they are turned, too."""


def read_image(path: str | Path, *, exif: bool, over: Callable[[], Size] | None = None) -> NDArray[np.uint8]:
    """A picture ``[H, W, 3]``, RGB, 0 to 255.

    Args:
        path: the file.
        exif: turn it as its EXIF orientation says. Upstream's ImageNet protocol does not.
        over: gives (H, W) of what lies over it pixel by pixel (mask, depth map, boxes); None where nothing does. It
            is asked where EXIF turns the picture, which is done if that makes the sizes fit.

    Raises:
        ImageError: missing or damaged, which is said of the file by name; a kind of picture whose values have no
            known range; or the picture is turned by EXIF and ``over`` does not fit the turned one, or fits both.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"cannot read image {path}: no such file")
    return decode_image(path.read_bytes(), str(path), exif=exif, over=over)


def decode_image(content: bytes, name: str, *, exif: bool, over: Callable[[], Size] | None = None) -> NDArray[np.uint8]:
    """``read_image`` for the bytes of a file; ``name`` is for messages."""
    if not content:
        raise ImageError(f"cannot read image {name}: the file is empty")
    picture = opened(io.BytesIO(content), name)
    if exif:
        _check_turn(picture, name, over)
        try:
            picture = ImageOps.exif_transpose(picture)
        except _BROKEN as error:
            raise ImageError(f"cannot read image {name}: its EXIF data are damaged: {error}") from error
    return np.asarray(_as_rgb(picture, name))


def opened(file: io.BytesIO | Path, name: str) -> Image.Image:
    """A picture read to its last byte, as it is stored.

    Raises:
        ImageError: it cannot be; ``name`` is named.
    """
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some training libraries switch it on for the whole process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, and of half a bomb
            picture = Image.open(file)
            picture.load()
            return picture
    except UnidentifiedImageError as error:
        raise ImageError(f"cannot read image {name}: it is no picture") from error
    except _BROKEN as error:
        raise ImageError(f"cannot read image {name}: {error or type(error).__name__}") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _turned_size(picture: Image.Image) -> tuple[int, Size]:
    """(EXIF orientation, (H, W) once the picture is turned by it); 1 is "as stored"."""
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        orientation = 1
    width, height = picture.size
    return orientation, (width, height) if orientation in _SIDEWAYS else (height, width)


def _check_turn(picture: Image.Image, name: str, over: Callable[[], Size] | None) -> None:
    orientation, turned = _turned_size(picture)
    if over is None or orientation not in range(2, 9):
        return
    stored = (picture.height, picture.width)
    told = f"{name} is stored as {stored[0]}x{stored[1]} and turned by its EXIF orientation {orientation}"
    if turned == stored:
        raise TurnedImageError(
            f"{told}, and its sizes do not tell whether its labels were: remove the tag, having turned the pixels "
            "if the labels ask for it (exiftran -ai, jpegtran)"
        )
    height, width = over()
    if (height, width) != turned:
        raise TurnedImageError(
            f"{told}, which makes it {turned[0]}x{turned[1]}; its labels are {height}x{width}: remove the tag if they "
            "lie over the picture as it is stored"
        )
    _say_once(f"{told} to fit its labels; other pictures of this kind are turned without a word")


_said: list[str] = []


def _say_once(message: str) -> None:
    """Warn of the first picture that is turned to fit its labels in this process."""
    if not _said:
        _said.append(message)
        warnings.warn(message, stacklevel=5)


def _as_rgb(picture: Image.Image, name: str) -> Image.Image:
    """8-bit RGB. 16-bit grey keeps its tones; an alpha channel is dropped, as OpenCV and torchvision drop it."""
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and picture.format == "PNG"):
        values: NDArray[Any] = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        raise ImageError(f"cannot read image {name}: 32-bit values have no known range; save it with 8 or 16 bits")
    try:
        if mode in ("P", "PA") and "transparency" in picture.info:
            # Straight to RGB, Pillow would warn about a palette with alpha.
            picture = picture.convert("RGBA")
        return picture.convert("RGB")
    except _BROKEN as error:
        raise ImageError(f"cannot read image {name}: {mode} cannot be shown in RGB: {error}") from error
