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
GAP, HEAD, FOOT = 5, 40, 22
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
    """Write the picture: a row an image; the input, then three columns for each model.

    Args:
        path: PNG to write, whole or not at all.
        images: ``[H, W, 3]`` each.
        queries: the marked patches.
        models: title to what the model sees.
        width: pixels of a column.
    """
    height = round(width * images[0].shape[0] / images[0].shape[1])
    grid = next(iter(models.values())).attention.shape[-2:]
    columns: list[tuple[str, str, list[Image.Image]]] = [("", "input", [Image.fromarray(image) for image in images])]
    colours = pca_rgb([seen.features for seen in models.values()])
    for (title, seen), pca in zip(models.items(), colours, strict=True):
        zeros = 100 * (seen.attention == 0).float().mean().item()
        columns.append((title, f"weights: {zeros:.0f} % are 0", [attention_colours(x) for x in seen.attention]))
        columns.append(("", "like [CLS]", [_heat(x) for x in seen.similarity]))
        columns.append(("", "components", [Image.fromarray((x.numpy() * 255).round().astype(np.uint8)) for x in pca]))
    size = (len(columns) * (width + GAP) - GAP, HEAD + len(images) * (height + GAP) + FOOT)
    sheet = Image.new("RGB", size, "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    for column, (title, kind, pictures) in enumerate(columns):
        x = column * (width + GAP)
        if title:
            pen.text((x + 1.5 * (width + GAP), 11), title, fill="black", font=font, anchor="mm")
        pen.text((x + width / 2, 29), kind, fill="#3b424a", font=small, anchor="mm")
        for row, (picture, query) in enumerate(zip(pictures, queries, strict=True)):
            y = HEAD + row * (height + GAP)
            kind_of = Image.Resampling.BICUBIC if column == 0 else Image.Resampling.NEAREST
            sheet.paste(picture.resize((width, height), kind_of), (x, y))
            if column % 3 == 1 or column == 0:
                _mark(pen, x, y, width / grid[1], height / grid[0], query)
    told = "exactly 0; pale to dark red: above. Attention of the marked patch in the last layer, mean over heads"
    y = size[1] - FOOT / 2
    pen.rectangle((4, y - 6, 22, y + 6), fill=ZERO)
    pen.text((28, y), told, fill="#3b424a", font=small, anchor="lm")
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
