"""How dense attention is: entropy, exact zeros, support, and what [CLS] looks at, per layer and head."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..codebases.features import ViTFeatures
from .images import Batch
from .recording import Answer, recorded
from .watch import Watcher, watch

__all__ = ["AttentionStatistics", "AttentionWatcher", "cls_attention", "entropy", "statistics"]

_BINS = 4096


@dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of attention rows, each ``[L, H]`` (layers, heads) on the CPU.

    Attributes:
        entropy: mean over images and queries, in nats (after Hyeon-Woo et al. 2023, Figure 4).
        entropy_p15: 15th percentile of the same rows, exact to ``log(n) / 4096``.
        bound: log n, the entropy of uniform attention over n keys, ``[L]``.
        zero_share: share of weights that are exactly zero because the normalizer gives the key nothing.
        underflow: share of weights that are zero in the model's dtype and not in exact arithmetic: softmax gives every
            key something, and what is below 1e-45 is stored as zero.
        support: mean number of keys that the normalizer gives weight, those that underflow among them.
        cls_mass: weight that [CLS] gives to patches; the rest goes to itself and to registers.
        rows: number of rows that each mean is over, ``[L]``.
    """

    entropy: Tensor
    entropy_p15: Tensor
    bound: Tensor
    zero_share: Tensor
    underflow: Tensor
    support: Tensor
    cls_mass: Tensor
    rows: Tensor

    def table(self) -> list[dict[str, float]]:
        """One row per layer and head."""
        layers, heads = self.entropy.shape
        names = ("entropy", "entropy_p15", "zero_share", "underflow", "support", "cls_mass")
        return [
            {"layer": layer, "head": head, "bound": float(self.bound[layer])}
            | {name: float(getattr(self, name)[layer, head]) for name in names}
            for layer in range(layers)
            for head in range(heads)
        ]


def entropy(weights: Tensor) -> Tensor:
    """Entropy in nats of each row of ``weights: [..., S]``; zeros count as zero. Returns ``[...]``."""
    terms: Tensor = torch.special.entr(weights)
    return terms.sum(dim=-1)


class _Layer:
    """Running sums of one layer; its size does not depend on how many images went by."""

    def __init__(self, heads: int, keys: int, device: torch.device) -> None:
        self.bound = math.log(keys)
        self.rows = 0
        self.images = 0
        self.histogram = torch.zeros(heads, _BINS, device=device, dtype=torch.int64)
        zeros = torch.zeros(heads, device=device, dtype=torch.float64)
        self.entropy, self.zero_share, self.support, self.cls_mass = (zeros.clone() for _ in range(4))
        self.underflow = zeros.clone()

    def add(self, answer: Answer, patches: int) -> None:
        """``answer``: weights ``[B, H, N, S]``, of which the last ``patches`` keys are patches."""
        weights = answer.weights.float()
        images, _, rows, keys = weights.shape
        self.bound = max(self.bound, math.log(keys))
        values = entropy(weights).transpose(0, 1).flatten(1)
        self.rows += values.shape[1]
        self.images += images
        self.entropy += values.sum(1)
        given = answer.support().sum(dim=(0, 2, 3))
        held = (answer.weights > 0).sum(dim=(0, 2, 3))
        self.support += given
        self.zero_share += (images * rows * keys - given) / keys
        self.underflow += (given - held) / keys
        self.cls_mass += weights[:, :, 0, -patches:].sum(dim=(0, 2))
        bins = (values / self.bound * _BINS).long().clamp(0, _BINS - 1)
        self.histogram.scatter_add_(1, bins, torch.ones_like(bins))

    def percentile(self, share: float) -> Tensor:
        """``[H]``: where ``share`` of the rows lie below."""
        cumulative = self.histogram.cumsum(1)
        index = (cumulative < share * self.rows).sum(1).clamp(max=_BINS - 1)
        return (index + 0.5) / _BINS * self.bound


class AttentionWatcher(Watcher):
    """Takes attention statistics down while a model runs."""

    attention = True

    def __init__(self) -> None:
        self._layers: dict[int, _Layer] = {}
        self._patches = 0

    def begin(self, batch: Batch, grid: tuple[int, int]) -> None:
        self._patches = grid[0] * grid[1]

    def weights(self, layer: int, answer: Answer) -> None:
        if layer not in self._layers:
            self._layers[layer] = _Layer(answer.weights.shape[1], answer.weights.shape[-1], answer.weights.device)
        self._layers[layer].add(answer, self._patches)

    def found(self) -> AttentionStatistics:
        """What was taken down.

        Raises:
            ValueError: there were no images.
        """
        if not self._layers:
            raise ValueError("no images: attention statistics need at least one batch")
        found = [self._layers[index] for index in sorted(self._layers)]

        def stacked(name: str) -> Tensor:
            return torch.stack([getattr(x, name) / x.rows for x in found]).float().cpu()

        return AttentionStatistics(
            entropy=stacked("entropy"),
            entropy_p15=torch.stack([x.percentile(0.15) for x in found]).float().cpu(),
            bound=torch.tensor([x.bound for x in found]),
            zero_share=stacked("zero_share"),
            underflow=stacked("underflow"),
            support=stacked("support"),
            cls_mass=torch.stack([x.cls_mass / x.images for x in found]).float().cpu(),
            rows=torch.tensor([x.rows for x in found]),
        )


@torch.no_grad()
def statistics(model: nn.Module, images: Tensor | Iterable[Tensor]) -> AttentionStatistics:
    """Attention statistics of a model, patched or not, streaming over batches.

    Never holds more than one layer's maps of one batch.

    Args:
        model: a ViT of DINOv1, v2, v3, timm or transformers, in eval mode.
        images: ``[B, 3, H, W]``, normalised; or batches of such, all of one size.

    Raises:
        UnsupportedModelError: the model has no attention that can be patched, or tells no patch size.
        ValueError: there are no images.
    """
    watcher = AttentionWatcher()
    batches = [images] if isinstance(images, Tensor) else images
    watch(model, (Batch(pixels, [[]] * len(pixels)) for pixels in batches), [watcher])
    return watcher.found()


@torch.no_grad()
def cls_attention(model: nn.Module, images: Tensor, layer: int = -1) -> Tensor:
    """What [CLS] looks at: its weights over the patches in one layer.

    Args:
        model: as in ``statistics``.
        images: ``[B, 3, H, W]``, normalised.
        layer: index, negative from the end.

    Returns:
        ``[B, heads, H/patch, W/patch]`` on the images' device.

    Raises:
        ValueError: there is no such layer.
    """
    features = ViTFeatures(model)
    if not -features.depth <= layer < features.depth:
        raise ValueError(f"layer={layer}: the model has layers 0 to {features.depth - 1}")
    h, w = (size // features.patch_size for size in images.shape[-2:])
    wanted = layer % features.depth
    maps: dict[int, Tensor] = {}

    def seen(index: int, answer: Answer) -> None:
        if index == wanted:
            maps[index] = answer.weights[:, :, 0, -h * w :].reshape(*answer.weights.shape[:2], h, w).clone()

    with recorded(model, seen):
        features(images, [features.depth - 1])
    return maps[wanted]
