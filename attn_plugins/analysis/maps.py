"""Maps of single images, and where attention goes: norms, outliers, sinks, distances, similar patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .images import Batch
from .measure import Definition, Measured
from .norms import FACTOR
from .recording import Answer
from .watch import Tokens, Watcher

__all__ = ["REACH", "Maps", "MapsWatcher", "ReachWatcher", "patch_distances"]

REACH = {
    one.name: one
    for one in (
        Definition(
            "sink",
            "Attention sink",
            "%",
            "Of all attention that the image's tokens give, the share that the one token receives that receives most, "
            "[CLS] and registers among them; mean over heads. Uniform attention over n tokens has 1 / n.",
            "Xiao et al. 2024 (arXiv 2309.17453), as a share",
            (0, 1),
        ),
        Definition(
            "attention_distance",
            "Mean attention distance",
            "patches",
            "Mean over heads and patches of the distance between a patch and the patches it attends to, weighted by "
            "its attention to these.",
            "Dosovitskiy et al. 2021, Figure 7",
            (0, np.inf),
        ),
    )
}


def patch_distances(grid: tuple[int, int]) -> Tensor:
    """``[P, P]``: distances of patches' centres, in patches."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows, columns], -1).flatten(0, 1).double()
    return torch.cdist(places, places)


class ReachWatcher(Watcher):
    """Takes sinks and distances of attention down while a model runs."""

    attention = True

    def __init__(self) -> None:
        self._distances = torch.zeros(0, 0)
        self._values: dict[str, dict[int, list[Tensor]]] = {name: {} for name in REACH}

    def begin(self, batch: Batch, grid: tuple[int, int]) -> None:
        if len(self._distances) != grid[0] * grid[1]:
            self._distances = patch_distances(grid).to(batch.pixels.device, torch.float32)

    def weights(self, layer: int, answer: Answer) -> None:
        weights = answer.weights.float()
        received = weights.mean(2).amax(-1).mean(1)
        self._values["sink"].setdefault(layer, []).append(received.double().cpu())
        patches = len(self._distances)
        among = weights[:, :, -patches:, -patches:]
        given = among.sum(-1)
        reach = torch.einsum("bhqk,qk->bhq", among, self._distances) / given
        # Rows that look at [CLS] alone reach nowhere.
        mean = torch.where(given > 0, reach, 0).sum((1, 2)) / (given > 0).sum((1, 2))
        self._values["attention_distance"].setdefault(layer, []).append(mean.double().cpu())

    def found(self) -> dict[str, Measured]:
        """What was taken down, by name."""
        return {
            name: Measured(
                REACH[name], torch.stack([torch.cat(layers[layer]) for layer in sorted(layers)], dim=1).numpy()
            )
            for name, layers in self._values.items()
            if layers
        }


@dataclass(frozen=True)
class Maps:
    """Maps of images in the last layer, each ``[N, h, w]``.

    Attributes:
        norms: of patches, before any norm.
        received: attention that each patch receives, mean over heads and queries.
        outliers: attention that the outliers give to patches, mean over heads and outliers; where an image has none,
            of its patch with the largest norm.
        similar: cosine of each patch with the query patch, under the final norm.
        counts: outliers of each image, ``[N]``.
        query: row and column of the query patch, the middle of the image.
    """

    norms: Tensor
    received: Tensor
    outliers: Tensor
    similar: Tensor
    counts: Tensor
    query: tuple[int, int]


class MapsWatcher(Watcher):
    """Takes the maps of one batch down; ``last`` is the index of the last layer."""

    attention = True

    def __init__(self, last: int) -> None:
        self.last = last
        self._grid = (0, 0)
        self._weights = torch.zeros(0)
        self._found: Maps | None = None

    def begin(self, batch: Batch, grid: tuple[int, int]) -> None:
        self._grid = grid

    def weights(self, layer: int, answer: Answer) -> None:
        if layer == self.last:
            self._weights = answer.weights.float().mean(1)

    def tokens(self, tokens: Tokens) -> None:
        if tokens.layer != self.last:
            return
        patches = tokens.under("none")[0]
        h, w = self._grid
        query = (h // 2, w // 2)
        norms = patches.norm(dim=-1)
        outliers = norms > FACTOR * norms.median(1, keepdim=True).values
        counts = outliers.sum(1)
        outliers |= (counts == 0)[:, None] & (norms == norms.amax(1, keepdim=True))
        given = self._weights[:, -h * w :, -h * w :]
        shown = (given * outliers[..., None]).sum(1) / outliers.sum(1, keepdim=True)
        final = tokens.under("final")[0]
        similar = F.cosine_similarity(final, final[:, query[0] * w + query[1], None], dim=-1)
        received = self._weights.mean(1)[:, -h * w :]
        norms, received, shown, similar = (x.reshape(-1, h, w).cpu() for x in (norms, received, shown, similar))
        self._found = Maps(norms, received, shown, similar, counts.cpu(), query)

    def found(self) -> Maps:
        """The maps.

        Raises:
            ValueError: nothing ran.
        """
        if self._found is None:
            raise ValueError("no images: maps need a batch")
        return self._found
