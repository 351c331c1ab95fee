"""The demo's picture: input, ground truth, and the first three PCA components of each model's patch features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ..analysis.images import MEAN, STD
from ..analysis.pca import pca_rgb
from ..codebases.features import ViTFeatures
from ..files import written

__all__ = ["draw", "load_images"]

GAP, HEAD = 6, 26


def load_images(files: Sequence[Path]) -> Tensor:
    """Image files of one size as ``[N, 3, H, W]``, normalised with ImageNet's mean and standard deviation."""
    stack = np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files])
    images = (torch.from_numpy(stack) - torch.tensor(MEAN)) / torch.tensor(STD)
    return images.permute(0, 3, 1, 2)


def draw(
    path: Path, images: Sequence[Path], masks: Sequence[Path], models: Mapping[str, nn.Module], scale: int = 1
) -> None:
    """Write the picture: a row an image; columns: input, ground truth, then one for each model.

    Args:
        path: PNG to write, whole or not at all.
        images: files of one size.
        masks: their class masks, with a palette.
        models: title to ViT.
        scale: pixels of the picture for a pixel of an image.
    """
    pixels = load_images(images)
    columns = {
        "input": [Image.open(file).convert("RGB") for file in images],
        "ground truth": [Image.open(file).convert("RGB") for file in masks],
    }
    features = []
    for model in models.values():
        with torch.no_grad():
            patches, _ = ViTFeatures(model.eval())(pixels, [-1])[0]
        features.append(patches.permute(0, 2, 3, 1))
    for title, colours in zip(models, pca_rgb(features), strict=True):
        columns[title] = [Image.fromarray((c.numpy() * 255).round().astype(np.uint8)) for c in colours]

    width, height = (side * scale for side in columns["input"][0].size)
    sheet = Image.new("RGB", (len(columns) * (width + GAP) - GAP, HEAD + len(images) * (height + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for column, (title, pictures) in enumerate(columns.items()):
        x = column * (width + GAP)
        pen.text((x + width / 2, HEAD / 2), title, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(pictures):
            kind = Image.Resampling.BICUBIC if title == "input" else Image.Resampling.NEAREST
            sheet.paste(picture.resize((width, height), kind), (x, HEAD + row * (height + GAP)))
    with written(path) as partial:
        sheet.save(partial, "PNG")
