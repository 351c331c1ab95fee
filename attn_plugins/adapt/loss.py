"""How far a student's features are from its teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..codebases.features import ViTFeatures
from .recipe import Recipe

__all__ = ["Reader", "Seen", "distance"]


class Seen(NamedTuple):
    """Of a batch: ``[B, N, C]`` patches and ``[B, C]`` of [CLS].

    Attributes:
        normed: of the last layer, after its norm.
        blocks: of some blocks' outputs.
    """

    normed: tuple[Tensor, Tensor]
    blocks: tuple[tuple[Tensor, Tensor], ...]


class Reader(nn.Module):
    """A ViT that gives what is compared, as a module that DDP can hold.

    Args:
        model: the ViT.
        layers: 0-based blocks.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.model, self.layers = model, tuple(layers)
        self.vit = ViTFeatures(model)

    def forward(self, images: Tensor) -> Seen:
        """Of ``[B, 3, H, W]``; registers, of which a student may have other numbers, are left out."""
        count = (images.shape[-2] // self.vit.patch_size) * (images.shape[-1] // self.vit.patch_size)
        outputs: dict[int, Tensor] = {}
        last = self.vit.depth - 1
        self.vit.visit(images, outputs.__setitem__, [*self.layers, last])
        normed = self.vit.final_norm(outputs[last], count)
        blocks = tuple((outputs[layer][:, -count:], outputs[layer][:, 0]) for layer in self.layers)
        return Seen((normed[:, -count:], normed[:, 0]), blocks)


def distance(student: Seen, teacher: Seen, recipe: Recipe) -> Tensor:
    """Smooth L1 on normed tokens, and on blocks the mean square over the variance of the image's own tokens.

    A mean over images, so that processes with parts of a batch have parts of its loss.
    """
    patches, cls = (F.smooth_l1_loss(a.float(), b.float()) for a, b in zip(student.normed, teacher.normed, strict=True))
    total = recipe.normed * patches + recipe.cls * cls
    for own, wanted in zip(student.blocks, teacher.blocks, strict=True):
        total = total + recipe.blocks / len(teacher.blocks) * _relative(own, wanted)
    return total


def _relative(own: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
    variance = wanted[0].float().var((1, 2), keepdim=True)
    patches = ((own[0].float() - wanted[0].float()).square() / variance).mean()
    cls = ((own[1].float() - wanted[1].float()).square() / variance[:, 0]).mean()
    return (patches + cls) / 2
