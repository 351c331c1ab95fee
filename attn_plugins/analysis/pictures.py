"""Pictures of bytes: strips of images, maps laid over them, points and boxes on them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .boxes import Box

__all__ = ["Pixels", "grid", "marked", "overlaid", "resized", "sheet"]

Pixels = NDArray[np.uint8]

GAP = 4
POINT = (255, 122, 0)


def resized(picture: NDArray[np.floating] | Pixels, side: int, smooth: bool = False) -> Pixels:
    """A picture ``[H, W, 3]``, of bytes or of [0, 1], as ``[side, side, 3]`` of bytes."""
    content = picture if picture.dtype == np.uint8 else (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(content)).resize((side, side), kind))


def overlaid(
    picture: NDArray[np.floating], values: NDArray[np.floating], top: float, side: int, low: float = 0.0
) -> Pixels:
    """A map ``[h, w]`` in colours (``low`` dark, ``top`` and above bright) over a picture ``[S, S, 3]`` in grey."""
    grey = resized(np.repeat(picture.mean(-1, keepdims=True), 3, axis=-1), side, smooth=True) / 255
    shade = matplotlib.colormaps["cividis"](
        np.clip((values - low) / (top - low), 0, 1) if top > low else np.zeros_like(values)
    )
    colours = resized(shade[..., :3], side) / 255
    return np.asarray(((0.3 * (0.25 + 0.6 * grey) + 0.7 * colours) * 255).round(), np.uint8)


def marked(picture: NDArray[np.floating], boxes: Sequence[Box], point: tuple[float, float] | None, side: int) -> Pixels:
    """A picture ``[S, S, 3]`` with boxes, in its pixels, and a point (x, y)."""
    scale = side / picture.shape[0]
    image = Image.fromarray(resized(picture, side, smooth=True))
    pen = ImageDraw.Draw(image)
    for box in boxes:
        corners = [scale * edge for edge in box]
        pen.rectangle(corners, outline="black", width=4)
        pen.rectangle([corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1], outline="white", width=2)
    if point is not None:
        x, y = (scale * edge for edge in point)
        for radius, colour in ((8, "black"), (7, "white"), (5, POINT)):
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    return np.asarray(image)


def grid(pictures: Sequence[Pixels], columns: int) -> Pixels:
    """Pictures of one size in rows of ``columns``, white between them."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    found = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        found[y : y + height, x : x + width] = picture
    return found


def sheet(named: Sequence[tuple[str, Pixels]]) -> Pixels:
    """Pictures below one another, each under its name."""
    font = ImageFont.load_default(size=18)
    width = max(picture.shape[1] for _, picture in named)
    titles = [textwrap.wrap(name, max(8, width // 10)) or [""] for name, _ in named]
    height = sum(24 * len(lines) + 8 + picture.shape[0] + 10 for lines, (_, picture) in zip(titles, named, strict=True))
    image = Image.new("RGB", (width, height), "white")
    pen, y = ImageDraw.Draw(image), 0
    for lines, (_, picture) in zip(titles, named, strict=True):
        for line in lines:
            pen.text((2, y + 4), line, fill="black", font=font)
            y += 24
        image.paste(Image.fromarray(picture), (0, y + 4))
        y += 8 + picture.shape[0] + 10
    return np.asarray(image)
