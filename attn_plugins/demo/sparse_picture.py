"""The picture in which sparsity is seen: what a patch looks at, what is like [CLS], and principal components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ..analysis.pca import pca_rgb
from ..analysis.recording import Answer, recorded
from ..codebases.features import ViTFeatures
from ..files import written

__all__ = ["ZERO", "Seen", "draw_sparse", "look"]

ZERO = (86, 126, 170)
"""Colour of weights that are exactly zero, which no colour of the others is like."""
KINDS = ("attention", "like [CLS]", "components")
GAP, HEAD, FOOT, LABELS = 5, 24, 24, 130
GREY = "#3b424a"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """What one model makes of N images with h × w patches.

    Attributes:
        attention: ``[N, h, w]``: the last layer's weights of each image's marked patch, mean over heads.
        similarity: ``[N, h, w]``: cosine of each patch feature with [CLS].
        features: ``[N, h, w, C]``: the last layer's patch features.
    """

    attention: Tensor
    similarity: Tensor
    features: Tensor


@torch.no_grad()
def look(model: nn.Module, images: Tensor, queries: Sequence[tuple[int, int]]) -> Seen:
    """Of a patched model in eval mode.

    Args:
        model: a ViT with [CLS].
        images: ``[N, 3, H, W]``, normalised.
        queries: (row, column) of each image's marked patch.
    """
    vit, maps = ViTFeatures(model.eval()), dict[int, Tensor]()
    height, width = (side // vit.patch_size for side in images.shape[-2:])

    def seen(layer: int, answer: Answer) -> None:
        patches = answer.weights[:, :, -height * width :, -height * width :]
        rows = [patches[n, :, row * width + column] for n, (row, column) in enumerate(queries)]
        maps[layer] = torch.stack(rows).mean(1).unflatten(-1, (height, width))

    with recorded(model, seen):
        tokens, cls = vit(images, [-1])[0]
    features = tokens.permute(0, 2, 3, 1)
    similarity = F.cosine_similarity(features, cls[:, None, None, :], dim=-1)
    return Seen(maps[max(maps)], similarity, features)


def draw_sparse(
    path: Path,
    images: Sequence[Pixels],
    queries: Sequence[tuple[int, int]],
    models: Mapping[str, Seen],
    width: int = 150,
) -> None:
    """Write the picture: three columns an image, the input above them; a row a model.

    Args:
        path: PNG to write, whole or not at all.
        images: ``[H, W, 3]`` each.
        queries: the marked patches.
        models: title to what the model sees.
        width: pixels of a column.
    """
    height = round(width * images[0].shape[0] / images[0].shape[1])
    rows, cols = next(iter(models.values())).attention.shape[-2:]
    wide, high = len(KINDS) * (width + GAP) + GAP, HEAD + height + (height + GAP) * len(models)
    sheet = Image.new("RGB", (LABELS + len(images) * wide, high + FOOT), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(size=15), ImageFont.load_default(size=12)

    def place(cell: Image.Image, x: int, y: int, smooth: bool = False) -> None:
        how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        sheet.paste(cell.resize((width, height), how), (x, y))

    for number, (image, query) in enumerate(zip(images, queries, strict=True)):
        x = LABELS + number * wide
        place(Image.fromarray(image), x + width + GAP, 0, smooth=True)
        _mark(pen, x + width + GAP, 0, width / cols, height / rows, query)
        for column, kind in enumerate(KINDS):
            middle = x + column * (width + GAP) + width / 2
            pen.text((middle, height + HEAD / 2), kind, fill=GREY, font=small, anchor="mm")
    components = pca_rgb([seen.features for seen in models.values()])
    for row, ((title, seen), colours) in enumerate(zip(models.items(), components, strict=True)):
        y = height + HEAD + row * (height + GAP)
        zeros = 100 * (seen.attention == 0).float().mean().item()
        lines = [*title.split(", "), f"{zeros:.0f} % of these are 0"]
        for line, text in enumerate(lines):
            last = line == len(lines) - 1
            at = (LABELS - 8, y + height / 2 + 20 * (line - (len(lines) - 1) / 2))
            pen.text(at, text, fill=GREY if last else "black", font=small if last else font, anchor="rm")
        for number, query in enumerate(queries):
            x = LABELS + number * wide
            place(attention_colours(seen.attention[number]), x, y)
            _mark(pen, x, y, width / cols, height / rows, query)
            place(_heat(seen.similarity[number]), x + width + GAP, y)
            shown = (colours[number].numpy() * 255).round().astype(np.uint8)
            place(Image.fromarray(shown), x + 2 * (width + GAP), y)
    told = "exactly 0; pale to dark red: above. Attention of the marked patch in the last layer, mean over heads"
    y = high + FOOT / 2
    pen.rectangle((LABELS, y - 6, LABELS + 18, y + 6), fill=ZERO)
    pen.text((LABELS + 24, y), told, fill=GREY, font=small, anchor="lm")
    with written(path) as partial:
        sheet.save(partial, "PNG")


def attention_colours(weights: Tensor) -> Image.Image:
    """``[h, w]`` weights as colours: pale to dark red by their square root; ``ZERO`` where exactly zero."""
    share = (weights / weights.max().clamp_min(torch.finfo(weights.dtype).tiny)).sqrt().numpy()
    colours = (255 * matplotlib.colormaps["YlOrRd"](share)[..., :3]).round().astype(np.uint8)
    colours[(weights == 0).numpy()] = ZERO
    return Image.fromarray(colours)


def _heat(values: Tensor) -> Image.Image:
    low, high = values.min(), values.max()
    share = ((values - low) / (high - low).clamp_min(1e-12)).numpy()
    return Image.fromarray((255 * matplotlib.colormaps["cividis"](share)[..., :3]).round().astype(np.uint8))


def _mark(pen: ImageDraw.ImageDraw, x: float, y: float, wide: float, high: float, query: tuple[int, int]) -> None:
    row, column = query
    box = (x + column * wide, y + row * high, x + (column + 1) * wide, y + (row + 1) * high)
    pen.rectangle(tuple(round(edge) for edge in box), outline=(0, 230, 120), width=2)
