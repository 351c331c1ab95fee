"""Pictures for a distillation: which one a step sees, and how it is cut, follow from the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..analysis.images import MEAN, STD
from ..data.images import read_image
from .recipe import Recipe

__all__ = ["Views", "batches"]

ASPECT = 4 / 3
"""Sides of a crop differ by at most this, as torchvision's RandomResizedCrop has it."""
MASKED = (0.1, 0.5)
"""Shares of patches that are grey in a picture that is masked."""

Place = tuple[int, int]
"""Step, and index in that step's batch over all processes."""


class Views(Dataset[Tensor]):
    """Augmented pictures ``[3, S, S]`` by their place: a resumed run, and one on more processes, see the same."""

    def __init__(self, files: Sequence[Path], recipe: Recipe, sizes: Sequence[int], patch: int) -> None:
        self.files, self.recipe, self.sizes, self.patch = files, recipe, sizes, patch
        self._order: tuple[int, NDArray[Any]] = (-1, np.empty(0))

    def __getitem__(self, place: Place) -> Tensor:
        step, index = place
        recipe, size = self.recipe, self.sizes[step % len(self.sizes)]
        draw = np.random.default_rng((recipe.seed, step, index))
        picture = Image.fromarray(read_image(self._file(step * recipe.batch + index), exif=True))
        box = _crop(picture.width, picture.height, recipe.crop, draw)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
        pixels = torch.from_numpy(np.asarray(picture, np.float32) / 255)
        pixels = ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
        if draw.random() < recipe.flip:
            pixels = pixels.flip(-1)
        if draw.random() < recipe.mask:
            hidden = torch.from_numpy(draw.random((size // self.patch, size // self.patch)) < draw.uniform(*MASKED))
            hidden = hidden.repeat_interleave(self.patch, 0).repeat_interleave(self.patch, 1)
            pixels = pixels.masked_fill(hidden, 0.0)  # the mean colour
        return pixels.contiguous()

    def _file(self, position: int) -> Path:
        """Every picture once, in an order of its own, before any comes again."""
        epoch, index = divmod(position, len(self.files))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.recipe.seed, epoch)).permutation(len(self.files))
        return self.files[int(self._order[1][index])]


def _crop(width: int, height: int, least: float, draw: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, right and bottom; the greatest square in the middle where ``least`` is 1."""
    if least == 1:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side
    area, ratio = draw.uniform(least, 1) * width * height, np.exp(draw.uniform(-np.log(ASPECT), np.log(ASPECT)))
    wide, high = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, top = draw.uniform(0, width - wide), draw.uniform(0, height - high)
    return left, top, left + wide, top + high


class _Places:
    """What each step of a process reads; a batch sampler."""

    def __init__(self, first: int, steps: int, batch: int, rank: int, world: int) -> None:
        self.steps = range(first, steps)
        self.own = range(rank, batch, world)

    def __iter__(self) -> Iterator[list[Place]]:
        return ([(step, index) for index in self.own] for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def batches(views: Views, first: int, steps: int, rank: int, world: int, workers: int) -> DataLoader[Tensor]:
    """Those of a process, ``[batch / world, 3, S, S]``, from step ``first`` on."""
    places: Any = _Places(first, steps, views.recipe.batch, rank, world)
    return DataLoader(views, batch_sampler=places, num_workers=workers)
