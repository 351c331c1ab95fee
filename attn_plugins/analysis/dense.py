"""Dense quality without training a head: patches named by their nearest, and by clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .images import Batch
from .measure import Definition, Floats, Score, percentiles, resampled
from .watch import Tokens, Watcher

__all__ = ["DenseWatcher", "kmeans", "knn", "mean_iou", "patch_labels"]

NEAREST, TEMPERATURE = 20, 0.07
LIMIT = 200
"""Images whose patches are held; more are left out, which the number of images says."""

KNN = Definition(
    "knn_miou",
    "k-NN patch mIoU",
    "%",
    "Each patch of the last layer (final norm, cosine) takes the class for which its 20 nearest patches vote, weighted "
    "by exp(similarity / 0.07); every second image is named by the patches of the others. mIoU over patches, whose "
    "class is that of most of their pixels.",
    "votes: Caron et al. 2021 (DINO); patches by retrieval: Balazevic et al. 2023 (arXiv 2306.01667)",
    (0, 1),
)
KMEANS = Definition(
    "kmeans_miou",
    "k-means patch mIoU",
    "%",
    "As many clusters of the last layer's unit patches (final norm) as there are classes, matched one to one to "
    "classes so that most patches agree; mIoU over patches. The interval holds clusters and match fixed.",
    "Van Gansbeke et al. 2021 (arXiv 2102.06191)",
    (0, 1),
)


def patch_labels(masks: Tensor, grid: tuple[int, int], ignored: Sequence[int] = (255,)) -> Tensor:
    """``[B, h * w]``: the class of most pixels of each patch of ``masks: [B, S, S]``; -1 where most are ignored.

    Of classes with equally many pixels the smallest number is taken, and any of them before -1.
    """
    high, wide = masks.shape[1] // grid[0], masks.shape[2] // grid[1]
    named = torch.where(torch.isin(masks, torch.tensor(list(ignored), device=masks.device)), -1, masks)
    tiles = named.unfold(1, high, high).unfold(2, wide, wide).flatten(3).flatten(1, 2)
    counts = F.one_hot(tiles + 1, int(named.max()) + 2).sum(2)
    most, best = counts[..., 1:].max(-1) if counts.shape[-1] > 1 else (counts[..., 0] - 1, counts[..., 0])
    return torch.where(counts[..., 0] > most, -1, best)


def mean_iou(confusion: Floats) -> Floats:
    """mIoU of confusion matrices ``[..., K, K]`` (truth in rows), over the classes that are in the truth."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1)
    truth, told = confusion.sum(-1), confusion.sum(-2)
    with np.errstate(invalid="ignore"):
        values = np.where(truth > 0, both / (truth + told - both), np.nan)
    return np.asarray(np.nanmean(values, axis=-1))


class DenseWatcher(Watcher):
    """Keeps the last layer's patches and their classes of up to ``LIMIT`` images with masks.

    Args:
        last: index of the last layer.
        ignored: classes of pixels that are not asked for.
        seed: of k-means.
    """

    def __init__(self, last: int, ignored: Sequence[int] = (255,), seed: int = 0) -> None:
        self.last, self.ignored, self.seed = last, tuple(ignored), seed
        self._patches: list[Tensor] = []
        self._labels: list[Tensor] = []

    def begin(self, batch: Batch, grid: tuple[int, int]) -> None:
        if batch.masks is not None and sum(map(len, self._labels)) < LIMIT:
            self._labels.append(patch_labels(batch.masks, grid, self.ignored).cpu())

    def tokens(self, tokens: Tokens) -> None:
        if tokens.layer == self.last and len(self._patches) < len(self._labels):
            self._patches.append(F.normalize(tokens.under("final")[0], dim=-1).cpu())

    def found(self) -> list[Score]:
        """k-NN and k-means mIoU; nothing where there are fewer than two images with masks, or one class."""
        if not self._labels:
            return []
        patches, labels = torch.cat(self._patches)[:LIMIT], torch.cat(self._labels)[:LIMIT]
        classes = torch.unique(labels[labels >= 0])
        if len(labels) < 2 or len(classes) < 2:
            return []
        own = torch.where(labels >= 0, torch.searchsorted(classes, labels), -1)
        named = knn(patches, own, len(classes))
        clusters = kmeans(patches, own, len(classes), self.seed)
        return [_score(KNN, own, named, len(classes)), _score(KMEANS, own, clusters, len(classes))]


def knn(patches: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Classes ``[N, P]`` of unit patches ``[N, P, C]``, each by its nearest in the other half of the images.

    Args:
        patches: of N images.
        labels: ``[N, P]``, -1 where there is none.
        classes: their number.
    """
    found = torch.zeros_like(labels)
    for half in (0, 1):
        bank, known = patches[1 - half :: 2].flatten(0, 1), labels[1 - half :: 2].flatten()
        bank, known = bank[known >= 0], known[known >= 0]
        named = []
        for asked in torch.split(patches[half::2].flatten(0, 1), 1024):
            near, index = (asked @ bank.T).topk(min(NEAREST, len(bank)), dim=1)
            votes = torch.zeros(len(asked), classes, dtype=near.dtype)
            named.append(votes.scatter_add(1, known[index], (near / TEMPERATURE).exp()).argmax(1))
        found[half::2] = torch.cat(named).view_as(found[half::2])
    return found


def kmeans(patches: Tensor, labels: Tensor, classes: int, seed: int = 0) -> Tensor:
    """Classes ``[N, P]`` of unit patches by as many clusters, matched to classes; arguments as ``knn``."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans

    flat, known = patches.flatten(0, 1).numpy(), labels.flatten().numpy()
    held = known >= 0
    clusters = KMeans(classes, n_init=3, random_state=seed).fit(flat[held]).predict(flat)
    truth, cluster = linear_sum_assignment(_confusion(known[held], clusters[held], classes), maximize=True)
    names = np.empty(classes, np.int64)
    names[cluster] = truth
    return torch.from_numpy(names[clusters]).view_as(labels)


def _confusion(truth: NDArray[np.int64], told: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    return np.bincount(truth * classes + told, minlength=classes**2).reshape(classes, classes)


def _score(definition: Definition, labels: Tensor, named: Tensor, classes: int) -> Score:
    pairs = zip(labels.numpy(), named.numpy(), strict=True)
    held = [_confusion(truth[truth >= 0], told[truth >= 0], classes) for truth, told in pairs]
    counts = np.stack(held).astype(np.float64)
    low, high = percentiles(resampled(len(counts), lambda weights: mean_iou(np.tensordot(weights, counts, 1))))
    return Score(definition, float(mean_iou(counts.sum(0))), float(low), float(high), len(counts))
