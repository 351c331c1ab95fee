"""The same batch, draws and augmentation on any number of processes, and after a resume."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_dist_info, get_world_size, sync_random_seed
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop
from mmseg.registry import DATA_SAMPLERS, LOOPS, TRANSFORMS
from torch.utils.data import Sampler

__all__ = ["Draw", "ProbeSampler", "ProbeTrainLoop", "SeedDraw", "split_batch"]


def split_batch(total: int, processes: int, most: int) -> tuple[int, int]:
    """(images a process draws per iteration, parts that it takes them through the model in).

    Args:
        total: images of one optimizer step, over all processes.
        processes: number of processes.
        most: images that one process may take through the model at once.

    Raises:
        ValueError: they cannot be dealt out evenly; the message says what would work.
    """
    if total % processes:
        fitting = [n for n in range(1, total + 1) if total % n == 0]
        raise ValueError(
            f"the protocol's total batch of {total} cannot be dealt to {processes} processes evenly; "
            f"use {', '.join(map(str, fitting))} processes, or change train_cfg.total_batch_size knowingly"
        )
    share = total // processes
    parts = -(-share // most)
    if share % parts:
        fitting = [n for n in range(1, share + 1) if share % n == 0]
        raise ValueError(
            f"{share} images per process cannot be split evenly into parts of at most {most}; "
            f"set train_dataloader.batch_size to one of {', '.join(map(str, fitting))}"
        )
    return share, parts


@LOOPS.register_module()
class ProbeTrainLoop(IterBasedTrainLoop):
    """mmengine's iteration-based loop with a fixed total batch.

    One iteration is one optimizer step over ``total_batch_size`` images, whatever the number of processes: schedules,
    intervals and learning rates keep their meaning. ``train_dataloader.batch_size`` is the most that one process takes
    through the model at once; a larger share is split and its gradients are accumulated, which is logged.

    Args:
        total_batch_size: images per optimizer step over all processes.
        kwargs: of ``IterBasedTrainLoop``.

    Raises:
        ValueError: the total batch cannot be dealt out evenly, or the split is empty.
    """

    def __init__(self, runner: Any, dataloader: Any, total_batch_size: int, **kwargs: Any) -> None:
        world = get_world_size()
        share, self.parts = split_batch(total_batch_size, world, dataloader["batch_size"])
        # Written back, because the runner scales learning rates by the config's own batch size.
        dataloader["batch_size"] = share
        data = dataloader["dataset"]
        try:
            super().__init__(runner, dataloader, **kwargs)
        except ValueError as error:
            if "need at least one array" not in str(error):  # numpy's words, when mmengine packs an empty list
                raise
            raise ValueError(
                f"the training split is empty: {data['type']} found nothing in data_root={data.get('data_root')!r} "
                f"through ann_file={data.get('ann_file', '')!r}, {dict(data.get('data_prefix', {}))}"
            ) from error
        note = f"total batch {total_batch_size} = {world} process(es) x {share} images"
        if self.parts > 1:
            note += f", each in {self.parts} parts with accumulated gradients; batch norm sees one part at a time"
        print_log(note, logger="current")

    def run(self) -> Any:
        """Train; gradients are accumulated over the parts of each iteration."""
        optimizer = self.runner.optim_wrapper
        if self.parts > 1:
            optimizer._accumulative_counts = self.parts
            optimizer.initialize_count_status(self.runner.model, self.iter * self.parts, self.max_iters * self.parts)
        return super().run()

    def run_iter(self, data_batch: dict[str, list[Any]]) -> None:
        """One optimizer step.

        Args:
            data_batch: lists of equal length, as ``pseudo_collate`` makes them.
        """
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        size = len(data_batch["inputs"]) // self.parts
        for part in range(self.parts):
            piece = {key: values[part * size : (part + 1) * size] for key, values in data_batch.items()}
            outputs = self.runner.model.train_step(piece, optim_wrapper=self.runner.optim_wrapper)
        self.runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs)
        self._iter += 1


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
class ProbeSampler(Sampler[int]):
    """Endless shuffled passes over a dataset, dealt to the processes in turn.

    Draw number p of the stream is the same image with the same augmentation whatever the number of processes and of
    workers, and after a resume: iteration i always sees draws ``[i · total batch, (i + 1) · total batch)``.

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
