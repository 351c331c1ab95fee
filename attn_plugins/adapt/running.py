"""The steps of a distillation, in one process or in several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..codebases.features import ViTFeatures
from ..progress import Progress
from .loss import Reader, distance
from .parameters import choose, groups
from .recipe import Recipe
from .snapshots import Folder
from .start import Moving
from .views import Views, batches

__all__ = ["Run", "place"]

BETAS = (0.9, 0.999)
TIMED = 2
"""Steps of each size by whose time a budget of minutes becomes a number of them; the last counts."""


def place() -> tuple[int, int]:
    """Rank, and number of processes."""
    active = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if active else (0, 1)


class Run:
    """Student and teacher, and how far they are.

    Args:
        model: the student, patched.
        teacher: what it is to be like.
        files: pictures.
        recipe: with sizes and layers.
        workers: processes that read pictures.

    Attributes:
        losses: of the steps that were made, over all processes.
        seconds: that they took.
        first: the step that was gone on from.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module, files: Sequence[Path], recipe: Recipe, workers: int
    ) -> None:
        self.model, self.recipe, self.workers = model, recipe, workers
        self.student, self.teacher = Reader(model, recipe.layers), Reader(teacher, recipe.layers)
        self.device = next(model.parameters()).device
        self.views = Views(files, recipe, recipe.sizes, ViTFeatures(model).patch_size)
        self.losses: list[float] = []
        self.seconds, self.first = 0.0, 0

    def planned(self, begun: int | None) -> int:
        """How many steps there will be: those of the run that is gone on with, those asked for, or what fits."""
        if begun is not None:
            return begun
        if self.recipe.minutes is None:
            assert self.recipe.steps is not None
            return self.recipe.steps
        steps = torch.tensor(max(1, int(60 * self.recipe.minutes / self._seconds_a_step())))
        if place()[1] > 1:
            steps = steps.to(self.device)
            dist.broadcast(steps, 0)
        return int(steps)

    def _seconds_a_step(self) -> float:
        """Of forward and backward with a process's part of a batch; gradients are thrown away."""
        choose(self.model, self.recipe.train)
        rank, world = place()
        total = 0.0
        for step in range(len(self.recipe.sizes)):
            for _ in range(TIMED):
                started = time.perf_counter()
                images = [self.views[step, index] for index in range(rank, self.recipe.batch, world)]
                self._loss(self.student, torch.stack(images).to(self.device)).backward()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                spent = time.perf_counter() - started
                self.model.zero_grad(set_to_none=True)
            total += spent
        return total / len(self.recipe.sizes)

    def train(self, steps: int, moving: Moving, kept: Folder | None, every: float, progress: Progress | None) -> None:
        """All steps that are left, with a snapshot every so many seconds."""
        choose(self.model, self.recipe.train)
        rank, world = place()
        held = None if kept is None else kept.kept()
        optimizer = torch.optim.AdamW(groups(self.model, self.recipe), betas=BETAS)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.recipe.amp == "fp16")
        if held is not None:
            self._go_on(held, optimizer, scaler)
        if world > 1:
            dist.barrier()  # all have read what the first will write anew
        if kept is not None and rank == 0:
            kept.begin(steps)
        student: nn.Module = self.student
        if world > 1:
            student = DistributedDataParallel(self.student, find_unused_parameters=True, broadcast_buffers=False)
        started = last = time.monotonic()
        spent, pictures = self.seconds, batches(self.views, self.first, steps, rank, world, self.workers)
        for step, images in enumerate(pictures, self.first):
            moving.arrange()
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * self.recipe.rate(step, steps)
            self._step(student, images.to(self.device), optimizer, scaler)
            moving.step()
            now = time.monotonic()
            self.seconds = spent + now - started
            if kept is not None and rank == 0 and (now - last >= every or step + 1 == steps):
                kept.keep(self._state(step + 1, optimizer, scaler))
                last = now
            if progress is not None and rank == 0:
                progress(step + 1, steps)

    def _step(self, student: nn.Module, images: Tensor, optimizer: torch.optim.AdamW, scaler: Any) -> None:
        loss = self._loss(student, images)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.recipe.clip)
        scaler.step(optimizer)
        scaler.update()
        told = loss.detach().clone()
        if place()[1] > 1:
            dist.all_reduce(told)
            told /= place()[1]
        self.losses.append(float(told))
        if not torch.isfinite(told):
            raise ValueError(
                f"the loss is {self.losses[-1]} at step {len(self.losses)}: use a smaller lr "
                f"({self.recipe.lr}), or amp='off' ({self.recipe.amp!r})"
            )

    def _loss(self, student: nn.Module, images: Tensor) -> Tensor:
        with self._autocast():
            with torch.no_grad():
                wanted = self.teacher(images)
            found = student(images)
        return distance(found, wanted, self.recipe)

    def _autocast(self) -> AbstractContextManager[Any]:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return torch.autocast(self.device.type, kinds[self.recipe.amp]) if self.recipe.amp in kinds else nullcontext()

    def _state(self, step: int, optimizer: torch.optim.AdamW, scaler: Any) -> dict[str, Any]:
        return {
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "losses": self.losses,
            "seconds": self.seconds,
        }

    def _go_on(self, held: dict[str, Any], optimizer: torch.optim.AdamW, scaler: Any) -> None:
        self.model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        scaler.load_state_dict(held["scaler"])
        self.first, self.losses, self.seconds = int(held["step"]), list(held["losses"]), float(held["seconds"])
