"""Semantic diffusion, measured: how far one image's tokens have become alike, and where the global meaning sits.

Each measure is one number for every image and layer. Constructed features for which the value is known are in
tests/analysis/test_diffusion.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .images import Batch
from .measure import Definition, Measured
from .pib import centred
from .recording import Answer
from .watch import Tokens, Watcher, watch

__all__ = ["BOXED_MEASURES", "MEASURES", "DiffusionWatcher", "diffusion", "effective_rank", "mutual_nearest"]

NORM_NAMES = {"none": "before any norm", "own": "under the norm it goes through next", "final": "under the final norm"}


def _cosines(kind: str, title: str, text: str, source: str) -> list[Definition]:
    return [
        Definition(f"{kind}_{norm}", f"{title}, {said}", "", f"{text} Tokens {said}.", source, (-1, 1))
        for norm, said in NORM_NAMES.items()
        if norm != "final"
    ]


MAROUANI = "Marouani et al. 2026 (arXiv 2602.08626)"
MEASURES = {
    one.name: one
    for one in (
        *_cosines(
            "cls_patch", "[CLS]-to-patch cosine", "Mean cosine similarity of [CLS] and the image's patches.", MAROUANI
        ),
        *_cosines(
            "patch_patch",
            "Patch-to-patch cosine",
            "Mean cosine similarity of two different patches of the image.",
            MAROUANI,
        ),
        Definition(
            "mutual_nearest",
            "Mutual nearest patches",
            "%",
            "Share of patches that are the nearest (by cosine) of the patch that is nearest to them: pairs that agree, "
            "which a few patches that are near to all take apart. Tokens under the final norm.",
            "Dekel et al. 2015 (best buddies), within one image",
            (0, 1),
        ),
        Definition(
            "effective_rank",
            "Effective rank of patches",
            "",
            "exp of the entropy of the normalised singular values of the image's centred patches: 1 where they lie on "
            "a line, as many as there are dimensions where they spread alike. Tokens before any norm.",
            "Roy and Vetterli 2007",
            (1, np.inf),
        ),
    )
}
BOXED_MEASURES = {
    one.name: one
    for one in (
        Definition(
            "cls_foreground",
            "[CLS]-to-patch cosine inside boxes",
            "",
            "Mean cosine similarity of [CLS] and the patches whose centre lies in a box, under the final norm.",
            "Shi et al. 2026 (arXiv 2602.22394), patch scores",
            (-1, 1),
        ),
        Definition(
            "cls_background",
            "[CLS]-to-patch cosine outside boxes",
            "",
            "Mean cosine similarity of [CLS] and the patches in no box, under the final norm.",
            "Shi et al. 2026 (arXiv 2602.22394), patch scores",
            (-1, 1),
        ),
        Definition(
            "background_excess",
            "[CLS] cosine, background less foreground",
            "",
            "The cosine outside boxes less that inside, image by image: above zero, patches away from the object are "
            "more like [CLS] than those on it.",
            "Su 2026, section 3.1, as a number",
            (-2, 2),
        ),
        Definition(
            "attention_inside",
            "Attention that stays inside the object",
            "%",
            "Of the weight that a patch in a box gives to patches, the share that goes to patches in the same box (the "
            "smallest, where boxes overlap); mean over heads and over all such patches of the image.",
            "here",
            (0, 1),
        ),
        Definition(
            "inside_excess",
            "Attention inside the object, less its area",
            "%",
            "Attention that stays inside, less the share of patches that are the object's: 0 for uniform attention.",
            "here",
            (-1, 1),
        ),
    )
}


def mutual_nearest(x: Tensor) -> Tensor:
    """``[B]``: share of patches of ``x: [B, P, C]`` that are the nearest of their nearest, by cosine."""
    unit = F.normalize(x, dim=-1)
    alike = unit @ unit.transpose(1, 2)
    alike.diagonal(dim1=1, dim2=2).fill_(-np.inf)
    nearest = alike.argmax(-1)
    back = nearest.gather(1, nearest)
    return (back == torch.arange(x.shape[1], device=x.device)).double().mean(1)


def effective_rank(x: Tensor) -> Tensor:
    """``[B]``: effective rank (Roy and Vetterli 2007) of ``x: [B, P, C]``, the mean over P taken off.

    1 where all patches are equal.
    """
    centred = x.double() - x.double().mean(1, keepdim=True)
    smaller = centred @ centred.mT if x.shape[1] <= x.shape[2] else centred.mT @ centred
    values = torch.linalg.eigvalsh(smaller).clamp_min(0).sqrt()
    total = values.sum(-1, keepdim=True)
    shares = values / total.clamp_min(torch.finfo(torch.float64).tiny)
    rank: Tensor = torch.special.entr(shares).sum(-1).exp()
    return rank


class DiffusionWatcher(Watcher):
    """Takes the measures down while a model runs.

    Args:
        boxes: whether to take those that need boxes; otherwise those that do not.
    """

    def __init__(self, boxes: bool = False) -> None:
        self.attention = boxes
        self.definitions = BOXED_MEASURES if boxes else MEASURES
        self._values: dict[str, dict[int, list[Tensor]]] = {name: {} for name in self.definitions}
        self._regions: list[Tensor] = []

    def begin(self, batch: Batch, grid: tuple[int, int]) -> None:
        size = (batch.pixels.shape[-2], batch.pixels.shape[-1])
        self._regions = [
            torch.from_numpy(np.stack([centred([box], size, grid).ravel() for box in sorted(boxes, key=_area)]))
            if boxes
            else torch.zeros(0, grid[0] * grid[1], dtype=torch.bool)
            for boxes in batch.boxes
        ]

    def tokens(self, tokens: Tokens) -> None:
        if self.attention:
            self._foreground(tokens)
            return
        for norm in ("none", "own"):
            patches, cls = tokens.under(norm)
            unit = F.normalize(patches, dim=-1)
            self._keep(f"cls_patch_{norm}", tokens.layer, (unit @ F.normalize(cls, dim=-1)[..., None])[..., 0].mean(1))
            # The sum over all pairs is the squared length of the sum of the unit vectors; the diagonal is P.
            count = unit.shape[1]
            pairs = (unit.double().sum(1).square().sum(-1) - count) / (count * (count - 1))
            self._keep(f"patch_patch_{norm}", tokens.layer, pairs)
        self._keep("mutual_nearest", tokens.layer, mutual_nearest(tokens.under("final")[0]))
        self._keep("effective_rank", tokens.layer, effective_rank(tokens.under("none")[0]))

    def _foreground(self, tokens: Tokens) -> None:
        patches, cls = tokens.under("final")
        scores = F.cosine_similarity(patches, cls[:, None], dim=-1).cpu().double()
        inside = torch.stack([regions.any(0) for regions in self._regions])
        front, back = (_mean_where(scores, where) for where in (inside, ~inside))
        self._keep("cls_foreground", tokens.layer, front)
        self._keep("cls_background", tokens.layer, back)
        self._keep("background_excess", tokens.layer, back - front)

    def weights(self, layer: int, answer: Answer) -> None:
        patches = self._regions[0].shape[1]
        kept, excess = [], []
        for weights, regions in zip(answer.weights, self._regions, strict=True):
            share, area = attention_inside(weights[:, -patches:, -patches:].float(), regions.to(weights.device))
            kept.append(share)
            excess.append(share - area)
        self._keep("attention_inside", layer, torch.stack(kept))
        self._keep("inside_excess", layer, torch.stack(excess))

    def _keep(self, name: str, layer: int, values: Tensor) -> None:
        self._values[name].setdefault(layer, []).append(values.double().cpu())

    def found(self) -> dict[str, Measured]:
        """What was taken down, by name; nothing where there were no images."""
        return {
            name: Measured(
                self.definitions[name],
                torch.stack([torch.cat(layers[layer]) for layer in sorted(layers)], dim=1).numpy(),
            )
            for name, layers in self._values.items()
            if layers
        }


def attention_inside(weights: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the patches' attention that stays inside their object, and the share that the object has of the image.

    Args:
        weights: ``[H, P, P]``, attention of patches to patches.
        regions: ``[K, P]``, the patches of each object, from the smallest object to the largest.

    Returns:
        Two numbers, NaN where no patch lies in an object.
    """
    rows = regions.any(0)
    if not rows.any():
        nothing = torch.full((), torch.nan, dtype=torch.float64)
        return nothing, nothing
    own = regions[regions.int().argmax(0)[rows]]  # [R, P]: for each such patch, the patches of its object
    given = weights[:, rows]
    to_patches = given.sum(-1)
    kept = (given * own).sum(-1) / to_patches
    return kept[to_patches > 0].double().mean().cpu(), own.double().mean().cpu()  # some look at [CLS] alone


@torch.no_grad()
def diffusion(model: nn.Module, batches: Iterable[Batch], boxes: bool = False) -> dict[str, Measured]:
    """Measures of semantic diffusion of every layer, by name, streaming over batches.

    Args:
        model: a ViT, patched or not, in eval mode, on the batches' device.
        batches: images, with boxes (``images.Images.batches``) for those measures that need them.
        boxes: ``BOXED_MEASURES`` instead of ``MEASURES``.

    Raises:
        UnsupportedModelError: the model is no ViT that features can be read from.
        ValueError: there are no images.
    """
    watcher = DiffusionWatcher(boxes)
    if watch(model, batches, [watcher]) == 0:
        raise ValueError("no images: measures of diffusion need at least one batch")
    return watcher.found()


def _area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """``[B]``: means of ``values: [B, P]`` where ``where``; NaN where it is nowhere."""
    return (values * where).sum(1) / where.sum(1)
