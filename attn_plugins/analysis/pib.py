"""Point-in-box: does the patch that is most like [CLS] lie on the object? The paper's Figure 2a.

Two choices decide that figure, and the paper states neither: the norm before the cosine, and what counts as a hit.
Here both are said with every number, beside what a patch drawn at random would reach, and beside the share of points on
the image's border, where a norm that was trained for another layer sends most of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .boxes import Box
from .images import Batch, View
from .measure import Definition, Measured
from .watch import NORMS, Tokens, Watcher, watch

__all__ = ["HITS", "PiB", "PiBWatcher", "overlapped", "pib"]

HITS = {
    "centre": "a patch counts where its centre lies in a box, as it is left by the crop",
    "overlap": "a patch counts where a box reaches into it, from the patch of its first edge to that of its last, both "
    "included (LaSt-ViT, visualization/evaluate_patch_hit.py)",
}

POINT = Definition(
    "pib",
    "Point-in-box",
    "%",
    "Share of images whose patch with the highest cosine similarity to [CLS] lies in a box of the image.",
    "Shi et al. 2026 (LaSt-ViT); Su 2026, Figure 2a",
    (0, 1),
)
ABOVE = Definition(
    "above_chance",
    "Point-in-box above chance",
    "%",
    "Point-in-box less the share of the image's patches that would count, which a patch drawn at random reaches.",
    "here",
    (-1, 1),
)
BORDER = Definition(
    "border",
    "Points on the border",
    "%",
    "Share of images whose point is a patch of the outermost ring; a patch drawn at random is one in chance_border.",
    "here",
    (0, 1),
)


@dataclass(frozen=True)
class PiB:
    """Point-in-box of one model, image by image.

    Attributes:
        norm: what stood before the cosine, of ``watch.NORMS``.
        hit: what counts as a hit, of ``HITS``.
        points: the patch chosen, row-major in the grid, ``[N, L]``.
        hits: whether it counts, ``[N, L]``.
        chance: share of the image's patches that would, ``[N]``.
        grid: rows and columns of patches.
        kept: which of the images that went by these are, ``[N]``.
        skipped: images that were left out: without a box, or none that counts.
    """

    norm: str
    hit: str
    points: NDArray[np.int64]
    hits: NDArray[np.bool_]
    chance: NDArray[np.float64]
    grid: tuple[int, int]
    kept: NDArray[np.int64]
    skipped: int = 0

    @property
    def images(self) -> int:
        return len(self.hits)

    @property
    def share(self) -> Measured:
        """Point-in-box."""
        return Measured(POINT, self.hits.astype(np.float64))

    @property
    def above_chance(self) -> Measured:
        """Point-in-box less chance, image by image."""
        return Measured(ABOVE, self.hits - self.chance[:, None])

    @property
    def border(self) -> Measured:
        """Points on the border."""
        on_border = np.isin(self.points, np.flatnonzero(_ring(self.grid)))
        return Measured(BORDER, on_border.astype(np.float64))

    def point(self, image: int, layer: int, side: int) -> tuple[float, float]:
        """(x, y) of a chosen patch's centre in an image of ``side`` pixels."""
        row, column = divmod(int(self.points[image, layer]), self.grid[1])
        return (column + 0.5) * side / self.grid[1], (row + 0.5) * side / self.grid[0]

    @property
    def border_chance(self) -> float:
        """Share of the patches that lie on the border."""
        return float(_ring(self.grid).mean())

    def table(self) -> list[dict[str, object]]:
        """One row per layer."""
        chance = {"chance": float(self.chance.mean()), "border_chance": self.border_chance}
        told = {"norm": self.norm, "hit": self.hit, "skipped": self.skipped}
        kinds = zip(self.share.table(), self.above_chance.table(), self.border.table(), strict=True)
        return [
            {"layer": share["layer"], "pib": share["value"], "low": share["low"], "high": share["high"]}
            | {"above_chance": above["value"], "above_low": above["low"], "above_high": above["high"]}
            | {"border": border["value"], "border_low": border["low"], "border_high": border["high"]}
            | chance
            | {"hits": int(self.hits[:, share["layer"]].sum()), "images": self.images}
            | told
            for share, above, border in kinds
        ]


def overlapped(box: Box, size: tuple[int, int], view: View, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Patches ``[h, w]`` that a box reaches into, as LaSt-ViT's ``bbox_to_patch_set`` tells them.

    From the patch of its first edge to the patch of its last, both included: also where it ends at a patch's very
    first pixel, and for a box that the crop cuts away above or to the left, which leaves the first row or column.

    Args:
        box: in the picture's own pixels.
        size: (H, W) of the picture.
        view: how it becomes a square; ``resize`` and ``size`` are used.
        grid: rows and columns of patches.
    """
    height, width = size
    scale = (view.resize or view.size) / min(size)
    found = np.zeros(grid, bool)
    spans = []
    # VOC counts from 1, and the corners are taken as they are written.
    for first, last, side, patches in ((box[1] + 1, box[3], height, grid[0]), (box[0] + 1, box[2], width, grid[1])):
        cut = (int(side * scale) - view.size) // 2
        start, end = (max(0, min(view.size, corner * scale - cut)) for corner in (first, last))
        patch = view.size // patches
        spans.append(slice(int(start // patch), min(int(end // patch) + 1, patches)))
    found[spans[0], spans[1]] = True
    return found


def centred(boxes: Sequence[Box], size: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Patches ``[h, w]`` whose centre lies in one of ``boxes``, in pixels of an image of (H, W)."""
    ys = (np.arange(grid[0]) + 0.5) * (size[0] / grid[0])
    xs = (np.arange(grid[1]) + 0.5) * (size[1] / grid[1])
    found = np.zeros(grid, bool)
    for left, top, right, bottom in boxes:
        found |= ((ys >= top) & (ys <= bottom))[:, None] & ((xs >= left) & (xs <= right))
    return found


class PiBWatcher(Watcher):
    """Takes point-in-box down while a model runs.

    Args:
        norm: of ``watch.NORMS``.
        hit: of ``HITS``.
        view: how pictures became squares; only "overlap" asks.

    Raises:
        ValueError: an unknown norm or hit.
    """

    def __init__(self, norm: str = "final", hit: str = "centre", view: View | None = None) -> None:
        if norm not in NORMS or hit not in HITS:
            raise ValueError(f"norm={norm!r}, hit={hit!r}; norms are {', '.join(NORMS)}, hits {', '.join(HITS)}")
        self.norm, self.hit, self.view = norm, hit, view or View()
        self.grid = (0, 0)
        self.skipped = 0
        self._counted: list[NDArray[np.bool_]] = []
        self._points: dict[int, list[NDArray[np.int64]]] = {}
        self._kept: list[int] = []
        self._all_kept: list[int] = []

    def begin(self, batch: Batch, grid: tuple[int, int]) -> None:
        self.grid = grid
        size = (batch.pixels.shape[-2], batch.pixels.shape[-1])
        self._kept, before = [], len(self._all_kept) + self.skipped
        for index, boxes in enumerate(batch.boxes):
            if self.hit == "overlap":
                own, picture = batch.objects[index]
                counted = [overlapped(box, picture, self.view, grid) for box in own]
            else:
                counted = [centred(boxes, size, grid)] if boxes else []
            if counted:
                self._kept.append(index)
                self._all_kept.append(before + index)
                self._counted.append(np.logical_or.reduce(counted).ravel())
            else:
                self.skipped += 1

    def tokens(self, tokens: Tokens) -> None:
        if self._kept:
            patches, cls = tokens.under(self.norm)
            found = most_like(patches[self._kept], cls[self._kept])
            self._points.setdefault(tokens.layer, []).append(found.cpu().numpy())

    def found(self) -> PiB:
        """What was taken down.

        Raises:
            ValueError: no image has a box that counts.
        """
        if not self._counted:
            raise ValueError(
                f"none of {self.skipped} images has a box that counts: point-in-box needs VOC or ImageNet XML, or "
                "COCO JSON"
            )
        points = np.stack([np.concatenate(self._points[layer]) for layer in sorted(self._points)], axis=1)
        counted = np.stack(self._counted)
        hits = np.take_along_axis(counted, points, axis=1)
        return PiB(
            self.norm, self.hit, points, hits, counted.mean(1), self.grid, np.array(self._all_kept), self.skipped
        )


def most_like(patches: Tensor, cls: Tensor) -> Tensor:
    """``[B]``: index of the patch ``[B, P, C]`` with the highest cosine similarity to [CLS] ``[B, C]``."""
    return F.cosine_similarity(patches, cls[:, None], dim=-1).argmax(1)


@torch.no_grad()
def pib(
    model: nn.Module, batches: Iterable[Batch], norm: str = "final", hit: str = "centre", view: View | None = None
) -> PiB:
    """Point-in-box of every layer, streaming over batches.

    Args:
        model: a ViT, patched or not, in eval mode, on the batches' device.
        batches: images with boxes (``images.Images.batches``); those without a box that counts are left out.
        norm, hit, view: as ``PiBWatcher`` takes them.

    Raises:
        UnsupportedModelError: the model is no ViT that features can be read from.
        ValueError: no image has a box that counts, or an unknown norm or hit.
    """
    watcher = PiBWatcher(norm, hit, view)
    watch(model, batches, [watcher])
    return watcher.found()


def _ring(grid: tuple[int, int]) -> NDArray[np.bool_]:
    ring = np.ones(grid, bool)
    ring[1:-1, 1:-1] = False
    return ring
