"""Point-in-box: does the patch that is most like [CLS] lie on the object? The paper's Figure 2a."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codebases.features import ViTFeatures
from .boxes import Box
from .images import Batch

__all__ = ["PiB", "hits", "pib", "wilson"]


@dataclass(frozen=True)
class PiB:
    """Point-in-box of one model.

    Attributes:
        hits: images whose point lies in a box, for each layer.
        images: images with a box.
        skipped: images without one (or cut away by the centre crop).
    """

    hits: tuple[int, ...]
    images: int
    skipped: int

    @property
    def share(self) -> list[float]:
        """Share of images, in [0, 1], for each layer."""
        return [count / self.images for count in self.hits]

    def interval(self, layer: int, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of one layer's share."""
        return wilson(self.hits[layer], self.images, confidence)

    def table(self) -> list[dict[str, float]]:
        """One row per layer, with the 95 % interval."""
        return [
            {"layer": layer, "pib": share, "low": self.interval(layer)[0], "high": self.interval(layer)[1]}
            | {"hits": self.hits[layer], "images": self.images}
            for layer, share in enumerate(self.share)
        ]


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: never outside [0, 1], right also at 0 and 1.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials is no proportion")
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(confidence, dtype=torch.float64)))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def hits(patches: Tensor, cls: Tensor, boxes: Sequence[Sequence[Box]], size: tuple[int, int]) -> list[bool]:
    """Whether each image's patch with the highest cosine similarity to [CLS] has its centre inside a box.

    Args:
        patches: ``[B, C, h, w]``.
        cls: ``[B, C]``.
        boxes: for each image, in pixels.
        size: height and width of the images in pixels.
    """
    h, w = patches.shape[-2:]
    best = F.cosine_similarity(patches.flatten(2), cls[:, :, None], dim=1).argmax(1)
    ys = ((best // w) + 0.5) * (size[0] / h)
    xs = ((best % w) + 0.5) * (size[1] / w)
    points = zip(xs.tolist(), ys.tolist(), boxes, strict=True)
    return [any(a <= x <= c and b <= y <= d for a, b, c, d in own) for x, y, own in points]


@torch.no_grad()
def pib(model: nn.Module, batches: Iterable[Batch], norm: bool = True) -> PiB:
    """Point-in-box of every layer, streaming over batches.

    Args:
        model: a ViT, patched or not, in eval mode, on the batches' device.
        batches: images with boxes (:meth:`.images.Images.batches`); those without a box are left out.
        norm: apply the model's final norm to every layer's tokens first, as ``get_intermediate_layers`` does.

    Raises:
        UnsupportedModelError: the model is no ViT that features can be read from.
        ValueError: no image has a box.
    """
    features = ViTFeatures(model)
    layers = list(range(features.depth))
    counts, images, skipped = [0] * features.depth, 0, 0
    for batch in batches:
        kept = [index for index, boxes in enumerate(batch.boxes) if boxes]
        skipped += len(batch.boxes) - len(kept)
        images += len(kept)
        if not kept:
            continue
        pixels, boxes = batch.pixels[kept], [batch.boxes[index] for index in kept]
        for layer, (patches, cls) in zip(layers, features(pixels, layers, norm), strict=True):
            counts[layer] += sum(hits(patches.float(), cls.float(), boxes, (pixels.shape[-2], pixels.shape[-1])))
    if images == 0:
        raise ValueError(f"none of {skipped} images has a box: point-in-box needs VOC or ImageNet XML, or COCO JSON")
    return PiB(tuple(counts), images, skipped)
