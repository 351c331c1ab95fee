"""An infinite sampler whose every draw carries its own seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_dist_info, sync_random_seed
from mmseg.registry import DATA_SAMPLERS, TRANSFORMS
from torch.utils.data import Sampler

__all__ = ["Draw", "ProbeSampler", "SeedDraw"]


class Draw(int):
    """A dataset index that remembers the seed of its draw."""

    seed: int

    def __new__(cls, index: int, seed: int) -> Draw:
        draw = super().__new__(cls, index)
        draw.seed = seed
        return draw

    def __reduce__(self) -> tuple[type[Draw], tuple[int, int]]:
        return Draw, (int(self), self.seed)


@DATA_SAMPLERS.register_module()
class ProbeSampler(Sampler):
    """Endless shuffled passes over a dataset, dealt to the processes in turn.

    Draw number p of the stream is the same image with the same augmentation whatever the number of processes and of
    workers, and after a resume: iteration i always sees draws `[i · total batch, (i + 1) · total batch)`.

    Args:
        dataset: anything with a length.
        shuffle: new order for every pass.
        seed: of order and augmentation; by default the run's.
        group: so many consecutive draws go to the same process, for losses that pool images.

    Raises:
        ValueError: the dataset is empty.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None, group: int = 1) -> None:
        if len(dataset) == 0:
            source = getattr(dataset, "ann_file", "") or getattr(dataset, "data_prefix", "")
            raise ValueError(f"{type(dataset).__name__} is empty: nothing was found through {source!r}")
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.group = group
        self.start = 0

    def __iter__(self) -> Iterator[Draw]:
        own = (
            draw
            for position, draw in enumerate(self._stream())
            if position // self.group % self.world_size == self.rank
        )
        return itertools.islice(own, self.start, None)

    def __len__(self) -> int:
        return self.size

    def skip(self, num_samples: int) -> None:
        """Begin after this many draws of this process; the train loop calls it when it resumes."""
        self.start = num_samples

    def set_epoch(self, epoch: int) -> None:
        """Nothing to do: the stream has no epochs."""

    def _stream(self) -> Iterator[Draw]:
        order = torch.Generator().manual_seed(self.seed)
        for epoch in itertools.count():
            indices = torch.randperm(self.size, generator=order) if self.shuffle else torch.arange(self.size)
            for position, index in enumerate(indices.tolist(), start=epoch * self.size):
                # A hash spreads neighbouring positions over the generators' seed space.
                yield Draw(index, hash((self.seed, position)) % 2**32)


@TRANSFORMS.register_module()
class SeedDraw(BaseTransform):
    """First transform of a training pipeline: seeds the augmentations with the draw's own seed."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        draw = results["sample_idx"]
        if isinstance(draw, Draw):
            random.seed(draw.seed)
            np.random.seed(draw.seed)
            torch.manual_seed(draw.seed)
        return results
