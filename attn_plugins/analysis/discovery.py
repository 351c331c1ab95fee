"""Object discovery without training: LOST's boxes and DINO's attention masks, against boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..codebases.features import ViTFeatures
from ..codebases.vit import find_vits
from ..errors import UnsupportedModelError
from .boxes import Box
from .images import Batch
from .measure import Definition, Score
from .recording import Answer
from .watch import Watcher

__all__ = ["JaccardWatcher", "LostWatcher", "iou", "kept_mass", "lost"]

CORLOC = Definition(
    "corloc",
    "LOST CorLoc",
    "%",
    "Share of images in which LOST's one box, from the last layer's keys (before rotary positions), has an IoU of at "
    "least 0.5 with a box of the image; on the squares that the model is shown, boxes as the crop leaves them.",
    "Simeoni et al. 2021 (arXiv 2109.14279), k = 100",
    (0, 1),
)
JACCARD = Definition(
    "attention_jaccard",
    "Attention Jaccard, best head",
    "%",
    "Jaccard index of the image's foreground and the patches that hold 60 % of [CLS]'s attention in the last layer, of "
    "the head for which it is highest, image by image.",
    "Caron et al. 2021 (DINO), section 4.2.2",
    (0, 1),
)
MASS = 0.6
SEEDS = 100


def lost(keys: Tensor, grid: tuple[int, int], seeds: int = SEEDS) -> tuple[int, int, int, int]:
    """LOST's box in one image: left, top, right, bottom in patches, right and bottom where it ends.

    The seed is the patch with the fewest positive similarities to others; of the ``seeds`` patches with the fewest,
    those that are similar to it are summed, and the box is that of the connected patches around it that are similar to
    the sum.

    Args:
        keys: ``[P, C]``, keys of all heads side by side, not normalised.
        grid: rows and columns of patches.
        seeds: patches that the seed may be joined by.
    """
    similar = keys @ keys.T
    apart = similar.clone().fill_diagonal_(0)
    order = (apart > 0).sum(1).argsort(stable=True)
    seed, candidates = order[0], order[:seeds]
    joined = candidates[similar[seed, candidates] > 0]
    inside = (similar[joined].sum(0) > 0).reshape(grid).cpu().numpy()
    row, column = divmod(int(seed), grid[1])
    rows, columns = np.nonzero(_component(inside, row, column))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def _component(inside: NDArray[np.bool_], row: int, column: int) -> NDArray[np.bool_]:
    """The patches of ``inside: [h, w]`` that are connected to one of them, over edges."""
    found = np.zeros_like(inside)
    waiting = [(row, column)]
    found[row, column] = True
    while waiting:
        y, x = waiting.pop()
        for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= near[0] < inside.shape[0] and 0 <= near[1] < inside.shape[1] and inside[near] and not found[near]:
                found[near] = True
                waiting.append(near)
    return found


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def kept_mass(weights: Tensor, mass: float = MASS) -> Tensor:
    """The fewest patches that hold ``mass`` of each row's weight, as DINO's pictures threshold attention.

    Args:
        weights: ``[..., P]``.
        mass: share of the row's sum.

    Returns:
        ``[..., P]``, bool.
    """
    values, order = weights.sort(dim=-1)
    shares = values.cumsum(-1) / values.sum(-1, keepdim=True)
    return torch.zeros_like(weights, dtype=torch.bool).scatter(-1, order, shares > 1 - mass)


class LostWatcher(Watcher):
    """Takes LOST's boxes down while a model runs; ``missing`` says why where the model's keys are not known."""

    def __init__(self) -> None:
        self.missing: str | None = None
        self._keys = torch.zeros(0)
        self._batch: Batch | None = None
        self._grid = (0, 0)
        self._hits: list[float] = []
        self._blind: list[float] = []

    def attach(self, features: ViTFeatures) -> list[RemovableHandle]:
        last = features.blocks[-1]
        try:
            vit = next(vit for vit in find_vits(features.model) if any(block is last for block in vit.blocks))
            linear = vit.qkv(last)
        except (UnsupportedModelError, StopIteration) as error:
            self.missing = str(error) or "the ViT that was found has other blocks"
            return []
        fused = len(linear) == 1

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self._keys = output.chunk(3, dim=-1)[1] if fused else output

        return [linear[0 if fused else 1].register_forward_hook(hook)]

    def begin(self, batch: Batch, grid: tuple[int, int]) -> None:
        self._batch, self._grid = batch, grid

    def end(self) -> None:
        if self.missing is not None or self._batch is None:
            return
        patches, side = self._grid[0] * self._grid[1], self._batch.pixels.shape[-1]
        for keys, boxes in zip(self._keys[:, -patches:].float(), self._batch.boxes, strict=True):
            hit = blind = np.nan
            if boxes:
                found = lost(keys, self._grid)
                x, y = side / self._grid[1], side / self._grid[0]
                box = (found[0] * x, found[1] * y, found[2] * x, found[3] * y)
                whole = (0.0, 0.0, float(side), float(side))
                hit, blind = (float(max(iou(one, own) for own in boxes) >= 0.5) for one in (box, whole))
            self._hits.append(hit)
            self._blind.append(blind)

    def found(self) -> list[Score]:
        """CorLoc, beside the whole picture's as the box; nothing where keys are not known, or no image has a box."""
        hits = np.array(self._hits)
        return [Score.of(CORLOC, hits, np.array(self._blind))] if np.isfinite(hits).any() else []


class JaccardWatcher(Watcher):
    """Takes the Jaccard index of DINO's attention masks down while a model runs over images with masks.

    Args:
        last: index of the last layer.
        background: classes that are no foreground.
        ignored: classes of pixels that count neither way.
    """

    attention = True

    def __init__(self, last: int, background: Sequence[int] = (0,), ignored: Sequence[int] = (255,)) -> None:
        self.last, self.background, self.ignored = last, tuple(background), tuple(ignored)
        self._batch: Batch | None = None
        self._grid = (0, 0)
        self._values: list[Tensor] = []
        self._blind: list[Tensor] = []

    def begin(self, batch: Batch, grid: tuple[int, int]) -> None:
        self._batch, self._grid = batch, grid

    def weights(self, layer: int, answer: Answer) -> None:
        if layer != self.last or self._batch is None or self._batch.masks is None:
            return
        patches = self._grid[0] * self._grid[1]
        masks = self._batch.masks
        kept = kept_mass(answer.weights[:, :, 0, -patches:].float()).reshape(*answer.weights.shape[:2], *self._grid)
        kept = kept.repeat_interleave(masks.shape[1] // self._grid[0], 2)
        kept = kept.repeat_interleave(masks.shape[2] // self._grid[1], 3)
        counted = ~torch.isin(masks, torch.tensor(self.ignored, device=masks.device))[:, None]
        front = ~torch.isin(masks, torch.tensor(self.background, device=masks.device))[:, None] & counted
        kept = kept & counted
        both, either = (kept & front).sum(dim=(2, 3)), (kept | front).sum(dim=(2, 3))
        best = (both / either).amax(1).double()
        # An image without foreground has nothing to find.
        there = front.any(3).any(2).any(1)
        area = (front.sum(dim=(2, 3)) / counted.sum(dim=(2, 3))).amax(1).double()
        self._values.append(torch.where(there, best, torch.nan).cpu())
        self._blind.append(torch.where(there, area, torch.nan).cpu())

    def found(self) -> list[Score]:
        """The mean over images, beside the whole picture's as mask; nothing where no image has a foreground."""
        values = torch.cat(self._values).numpy() if self._values else np.zeros(0)
        return [Score.of(JACCARD, values, torch.cat(self._blind).numpy())] if np.isfinite(values).any() else []
