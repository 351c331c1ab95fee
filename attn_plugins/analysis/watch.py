"""Look at a model while it runs, once for all that is measured: each layer's tokens and attention weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..codebases.features import ViTFeatures
from ..codebases.vit import find_vits
from ..errors import UnsupportedModelError
from .images import Batch
from .recording import Answer, recorded

__all__ = ["NORMS", "Tokens", "Watcher", "watch"]

NORMS = ("none", "final", "own")
"""What stands between a block's output and a measure: nothing; the model's final norm, as ``get_intermediate_layers``
applies it to every layer; or the norm that this output goes through in the model, which is the next block's first norm,
and behind the last block the final norm."""


class Tokens:
    """One layer's tokens of one batch, under whichever norm is asked for.

    Attributes:
        layer: index of the block.
        grid: rows and columns of patches.
    """

    def __init__(self, layer: int, grid: tuple[int, int], tokens: Tensor, features: ViTFeatures) -> None:
        self.layer, self.grid = layer, grid
        self._features = features
        self._normed = {"none": tokens}

    def under(self, norm: str) -> tuple[Tensor, Tensor]:
        """Patches ``[B, h * w, C]`` and [CLS] ``[B, C]`` in float32, under one of ``NORMS``.

        Raises:
            UnsupportedModelError: the next block's norm is asked for and not known.
        """
        patches = self.grid[0] * self.grid[1]
        if norm not in self._normed:
            last = self.layer == self._features.depth - 1
            tokens = self._normed["none"]
            self._normed[norm] = (
                self._features.final_norm(tokens, patches)
                if norm == "final" or last
                else _next_norm(self._features, self.layer)(tokens)
            )
        found = self._normed[norm].float()
        return found[:, -patches:], found[:, 0]


class Watcher:
    """Base class of what looks on.

    Attributes:
        attention: whether it asks for attention weights, which no fused kernel gives.
    """

    attention = False

    def attach(self, features: ViTFeatures) -> list[RemovableHandle]:
        """Hooks of its own on the model, which are taken off at the end."""
        return []

    def begin(self, batch: Batch, grid: tuple[int, int]) -> None:
        """A batch is about to run; ``grid``: rows and columns of patches."""

    def tokens(self, tokens: Tokens) -> None:
        """A block's output."""

    def weights(self, layer: int, answer: Answer) -> None:
        """A layer's attention."""

    def end(self) -> None:
        """The batch has run."""


@torch.no_grad()
def watch(model: nn.Module, batches: Iterable[Batch], watchers: Sequence[Watcher]) -> int:
    """Run ``model`` on every batch and let ``watchers`` look on; no more than one layer of one batch is held.

    Args:
        model: a ViT, patched or not, in eval mode, on the batches' device.
        batches: images.
        watchers: what looks on.

    Returns:
        The number of images.

    Raises:
        UnsupportedModelError: the model is no ViT that features can be read from, or attention is asked for and it
            has none that can be patched.
    """
    features = ViTFeatures(model)
    looking = [watcher for watcher in watchers if watcher.attention]
    images = 0

    def attended(layer: int, answer: Answer) -> None:
        for watcher in looking:
            watcher.weights(layer, answer)

    with contextlib.ExitStack() as stack:
        if looking:
            stack.enter_context(recorded(model, attended))
        for handle in [handle for watcher in watchers for handle in watcher.attach(features)]:
            stack.callback(handle.remove)
        for batch in batches:
            h, w = (size // features.patch_size for size in batch.pixels.shape[-2:])
            images += len(batch.pixels)
            for watcher in watchers:
                watcher.begin(batch, (h, w))

            def passed(layer: int, tokens: Tensor, grid: tuple[int, int] = (h, w)) -> None:
                shown = Tokens(layer, grid, tokens, features)
                for watcher in watchers:
                    watcher.tokens(shown)

            features.visit(batch.pixels, passed)
            for watcher in watchers:
                watcher.end()
    return images


def _next_norm(features: ViTFeatures, layer: int) -> nn.Module:
    """The first norm of the block behind ``layer``."""
    following = features.blocks[layer + 1]
    for vit in find_vits(features.model):
        if any(block is following for block in vit.blocks):
            norm: nn.Module = vit.norm1(following)
            return norm
    raise UnsupportedModelError(
        f"{type(features.model).__name__} does not tell the norm behind block {layer}: use norm 'final' or 'none'"
    )
