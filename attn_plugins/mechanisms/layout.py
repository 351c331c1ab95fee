"""Which tokens are which: dense batches, and the packed batches of crops that DINOv2 and DINOv3 train on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..codebases.packing import LAYOUT
from ..codebases.packing import packing as _packing  # noqa: F401 - the name that pickles of release 0.1 hold
from ..codebases.vit import ViT
from ..swap import add_layer

__all__ = ["LAYOUT", "Layout", "share_layout"]


class Layout:
    """The sequences that a block's norms, projections and MLP receive, which may be packed into one row of tokens.

    Attributes:
        prefix: tokens before the patches in each sequence.
        crops: ``(images, tokens)`` of each tensor that the block was given; empty where no batches are packed.
        packed: whether the block packs all of them into one row.
    """

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.crops: tuple[tuple[int, int], ...] = ()
        self.packed = False

    def apply(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Run ``function: [b, n, C] -> [b, n, D]`` on every batch of equally long sequences in ``x``.

        Args:
            x: ``[B, N, C]``, or a packed batch ``[1, T, C]`` or ``[T, C]``.

        Returns:
            The same layout with D channels.

        Raises:
            ValueError: a packed batch of another size than the block was given.
        """
        total = sum(images * tokens for images, tokens in self.crops)
        if x.ndim == 3 and not self.packed and (x.shape[0] > 1 or x.shape[1] != total):
            return function(x)
        if total != x.shape[-2]:
            raise ValueError(f"{x.shape[-2]} packed tokens, but the block was given (images, tokens) {self.crops}")
        sizes = [images * tokens for images, tokens in self.crops]
        parts = x.reshape(total, -1).split(sizes)
        crops = zip(parts, self.crops, strict=True)
        out = torch.cat([function(part.unflatten(0, crop)).flatten(0, 1) for part, crop in crops])
        return out.view(*x.shape[:-1], -1)


def share_layout(vit: ViT, block: nn.Module, *modules: nn.Module) -> None:
    """Give ``modules`` of ``block`` one layout, which the block keeps up to date."""
    if not hasattr(block, LAYOUT):
        setattr(block, LAYOUT, Layout(vit.prefix))
        if vit.known.packs is not None:
            add_layer(block, vit.known.packs)
    for module in modules:
        setattr(module, LAYOUT, getattr(block, LAYOUT))
