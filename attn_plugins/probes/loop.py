"""The train loop that keeps the protocol's total batch on any number of processes."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop
from mmseg.registry import LOOPS

__all__ = ["ProbeTrainLoop", "split_batch"]


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

    One iteration is one optimizer step over `total_batch_size` images, whatever the number of processes: schedules,
    intervals and learning rates keep their meaning. `train_dataloader.batch_size` is the most that one process takes
    through the model at once; a larger share is split and its gradients are accumulated, which is logged.

    Args:
        total_batch_size: images per optimizer step over all processes.
        kwargs: of `IterBasedTrainLoop`.

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
            data_batch: lists of equal length, as `pseudo_collate` makes them.
        """
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        size = len(data_batch["inputs"]) // self.parts
        for part in range(self.parts):
            piece = {key: values[part * size : (part + 1) * size] for key, values in data_batch.items()}
            outputs = self.runner.model.train_step(piece, optim_wrapper=self.runner.optim_wrapper)
        self.runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs)
        self._iter += 1
