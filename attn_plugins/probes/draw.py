"""Predictions as pictures: masks and depth maps as PNG, overlays, legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .predict import Prediction
from .told import ProbeRecord

__all__ = ["legend", "overlay", "stored"]

_OPACITY = 0.55
_LINE = 22
# Dark to light and blue to yellow, so that it reads in grey and for the colour-blind.
_DEPTH = ((12, 7, 60), (70, 20, 120), (150, 40, 110), (220, 80, 70), (250, 150, 30), (252, 235, 120))


def stored(prediction: Prediction, record: ProbeRecord) -> Image.Image | None:
    """What is saved to be read by programs: a mask in the values of the training masks, or depth in millimetres.

    A mask is a PNG with a palette, whose values are those of the training masks where these were grey; where they were
    colours, its palette has those. Depth is 16 bits, 0 to 65.535 m. None of a classification.
    """
    if prediction.mask is not None:
        values = list(record.values) or list(range(len(record.classes)))
        numbered = all(isinstance(value, int) and value < 256 for value in values)
        lookup = np.zeros(256, np.uint8)
        lookup[: len(values)] = values if numbered else range(len(values))
        picture = Image.fromarray(lookup[prediction.mask])
        palette = np.zeros((256, 3), np.uint8)
        palette[lookup[: len(values)]] = _palette(record)
        picture.putpalette(palette.tobytes())
        return picture
    if prediction.depth is not None:
        return Image.fromarray(np.clip(prediction.depth * 1000 + 0.5, 0, 65535).astype(np.uint16))
    return None


def overlay(prediction: Prediction, record: ProbeRecord) -> Image.Image:
    """The image under its prediction, with a legend of what it shows below."""
    image = Image.fromarray(prediction.image)
    if prediction.mask is not None:
        colours = Image.fromarray(_palette(record)[prediction.mask])
        shown = np.unique(prediction.mask).tolist()
        return _above(Image.blend(image, colours, _OPACITY), _classes(record, shown, image.width))
    if prediction.depth is not None:
        low, high = np.quantile(prediction.depth, (0.01, 0.99)).tolist()
        return _above(Image.fromarray(_coloured(prediction.depth, low, high)), _bar(low, high, image.width))
    lines = [f"{name}  {score:.0%}" for name, score in list((prediction.scores or {}).items())[:5]]
    return _above(image, _text(lines, image.width))


def legend(record: ProbeRecord) -> Image.Image | None:
    """Every class with its colour; None of probes without."""
    if record.task != "segmentation":
        return None
    return _classes(record, range(len(record.classes)), 360)


def _palette(record: ProbeRecord) -> NDArray[np.uint8]:
    return np.array(record.palette, np.uint8).reshape(-1, 3)


def _coloured(depth: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    place = np.clip((depth - low) / max(high - low, 1e-6), 0, 1)
    stops = np.linspace(0, 1, len(_DEPTH))
    return np.stack([np.interp(place, stops, [stop[c] for stop in _DEPTH]) for c in range(3)], -1).astype(np.uint8)


def _above(picture: Image.Image, below: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (picture.width, picture.height + below.height), "white")
    sheet.paste(picture, (0, 0))
    sheet.paste(below, (0, picture.height))
    return sheet


def _font() -> Any:
    return ImageFont.load_default(13)


def _classes(record: ProbeRecord, shown: Sequence[int], width: int) -> Image.Image:
    """Colours and names, as many beside each other as fit."""
    font = _font()
    names = [str(record.classes[number]) for number in shown]
    column = min(max((int(font.getlength(name)) for name in names), default=0) + 36, width)
    beside = max(width // max(column, 1), 1)
    sheet = Image.new("RGB", (width, _LINE * -(-len(names) // beside) + 6), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (number, name) in enumerate(zip(shown, names, strict=True)):
        left, top = index % beside * column + 6, index // beside * _LINE + 5
        colour = tuple(int(part) for part in record.palette[number])
        draw.rectangle((left, top + 1, left + 14, top + 15), fill=colour, outline="black")
        draw.text((left + 20, top), name, fill="black", font=font)
    return sheet


def _bar(low: float, high: float, width: int) -> Image.Image:
    sheet = Image.new("RGB", (width, 2 * _LINE + 4), "white")
    scale = np.broadcast_to(np.linspace(low, high, max(width - 12, 1), dtype=np.float32), (14, max(width - 12, 1)))
    sheet.paste(Image.fromarray(_coloured(scale, low, high)), (6, 5))
    draw, font = ImageDraw.Draw(sheet), _font()
    left, right = f"{low:.2f} m", f"{high:.2f} m"
    draw.text((6, _LINE), left, fill="black", font=font)
    draw.text((width - 6 - font.getlength(right), _LINE), right, fill="black", font=font)
    return sheet


def _text(lines: Sequence[str], width: int) -> Image.Image:
    sheet = Image.new("RGB", (width, _LINE * len(lines) + 6), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((6, number * _LINE + 4), line, fill="black", font=_font())
    return sheet
