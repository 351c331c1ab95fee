"""Norms of patch tokens per layer: the high-norm artifacts of Darcet et al. (2024)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .images import Batch
from .watch import Tokens, Watcher, watch

__all__ = ["FACTOR", "THRESHOLD", "NormWatcher", "TokenNorms", "token_norms"]

THRESHOLD = 150.0
"""Darcet et al. (2024), section 2: tokens of DINOv2 ViT-g/14 with a norm above 150. It means something for that model's
scale; smaller models have smaller norms."""
FACTOR = 3.0
"""The relative threshold: outliers are above so many medians of their layer. It compares models of any scale."""

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

    def above(self, norm: float | Tensor) -> Tensor:
        """``[L]``: share of tokens whose norm is above ``norm``, one number or ``[L]``, to the width of a bin."""
        limit = torch.as_tensor(norm).expand(len(self.counts))
        return (self.counts * (self.edges[None, :-1] >= limit[:, None])).sum(1) / self.counts.sum(1)

    def outlier_share(self, factor: float = FACTOR) -> Tensor:
        """``[L]``: share of tokens whose norm is above ``factor`` times their layer's median."""
        return self.above(factor * self.quantile(0.5))

    def table(self, threshold: float = THRESHOLD) -> list[dict[str, float]]:
        """One row per layer; outliers by the relative and by the absolute threshold."""
        columns = {"median": self.quantile(0.5), "p99": self.quantile(0.99)}
        columns |= {f"above_{FACTOR:g}_medians": self.outlier_share(), f"above_{threshold:g}": self.above(threshold)}
        return [
            {"layer": layer} | {name: float(values[layer]) for name, values in columns.items()}
            for layer in range(len(self.counts))
        ]


class NormWatcher(Watcher):
    """Takes the norms of each block's patch outputs down while a model runs, before any norm."""

    def __init__(self) -> None:
        self._counts: dict[int, Tensor] = {}

    def tokens(self, tokens: Tokens) -> None:
        patches, _ = tokens.under("none")
        logs = patches.norm(dim=-1).log2().clamp(_LOW, _HIGH).flatten()
        bins = ((logs - _LOW) / (_HIGH - _LOW) * _BINS).long().clamp(0, _BINS - 1)
        found = torch.bincount(bins, minlength=_BINS).cpu()
        self._counts[tokens.layer] = self._counts.get(tokens.layer, 0) + found

    def found(self) -> TokenNorms:
        """What was taken down.

        Raises:
            ValueError: there were no images.
        """
        if not self._counts:
            raise ValueError("no images: token norms need at least one batch")
        counts = torch.stack([self._counts[layer] for layer in sorted(self._counts)])
        return TokenNorms(counts, 2 ** torch.linspace(_LOW, _HIGH, _BINS + 1))


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
    watcher = NormWatcher()
    watch(model, (Batch(pixels, [[]] * len(pixels)) for pixels in batches), [watcher])
    return watcher.found()
