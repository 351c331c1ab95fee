"""Norms of patch tokens per layer: the high-norm artifacts of Darcet et al. (2024)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..codebases.features import ViTFeatures

__all__ = ["TokenNorms", "token_norms"]

_LOW, _HIGH, _BINS = -10.0, 20.0, 3000


@dataclass(frozen=True)
class TokenNorms:
    """L2 norms of patch tokens, as histograms over log2 of the norm.

    Attributes:
        counts: tokens in each bin, ``[L, bins]``, int64.
        edges: norms at the bins' edges, ``[bins + 1]``; neighbours differ by 0.7 %.
    """

    counts: Tensor
    edges: Tensor

    def quantile(self, share: float) -> Tensor:
        """``[L]``: the norm that ``share`` of the tokens do not exceed, to the width of a bin."""
        total = self.counts.sum(1, keepdim=True)
        index = (self.counts.cumsum(1) < share * total).sum(1).clamp(max=_BINS - 1)
        return (self.edges[index] * self.edges[index + 1]).sqrt()

    def outlier_share(self, factor: float = 3.0) -> Tensor:
        """``[L]``: share of tokens whose norm is above ``factor`` times their layer's median."""
        above = self.edges[None, :-1] >= factor * self.quantile(0.5)[:, None]
        return (self.counts * above).sum(1) / self.counts.sum(1)

    def table(self) -> list[dict[str, float]]:
        """One row per layer."""
        columns = {"median": self.quantile(0.5), "p99": self.quantile(0.99), "outlier_share": self.outlier_share()}
        return [
            {"layer": layer} | {name: float(values[layer]) for name, values in columns.items()}
            for layer in range(len(self.counts))
        ]


@torch.no_grad()
def token_norms(model: nn.Module, batches: Iterable[Tensor]) -> TokenNorms:
    """Histograms of the norms of each block's patch outputs (before the final norm), streaming over batches.

    Args:
        model: a ViT, patched or not, in eval mode.
        batches: images ``[B, 3, H, W]``, normalised, on the model's device.

    Raises:
        UnsupportedModelError: the model is no ViT that features can be read from.
        ValueError: there are no images.
    """
    features = ViTFeatures(model)
    counts = torch.zeros(features.depth, _BINS, dtype=torch.int64)
    layers = list(range(features.depth))
    for pixels in batches:
        for layer, (patches, _) in zip(layers, features(pixels, layers, norm=False), strict=True):
            logs = patches.float().norm(dim=1).log2().clamp(_LOW, _HIGH).flatten()
            bins = ((logs - _LOW) / (_HIGH - _LOW) * _BINS).long().clamp(0, _BINS - 1)
            counts[layer] += torch.bincount(bins, minlength=_BINS).cpu()
    if counts.sum() == 0:
        raise ValueError("no images: token norms need at least one batch")
    return TokenNorms(counts, 2 ** torch.linspace(_LOW, _HIGH, _BINS + 1))
