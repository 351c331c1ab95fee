"""DINO pre-training of several small ViTs in lock step: the same images, crops and seed for every method.

The loss, the head, the multi-crop transform and the schedules are lightly's. Training in lock step makes the
comparison exact (only the plugin differs) and the step times fair (they are taken in turn, in one process).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from lightly.models.utils import get_weight_decay_parameters, update_momentum
from lightly.transforms.dino_transform import DINOTransform
from lightly.utils.scheduler import cosine_schedule, cosine_warmup_schedule
from PIL import Image
from torch import Tensor, nn

from ..checkpoints import read
from ..files import written
from ..patching import patch

__all__ = ["ARCH", "Method", "Recipe", "pretrain"]

PROTOTYPES = 1024
ARCH = "timm/vit_tiny_patch16_224"


@dataclass(frozen=True)
class Recipe:
    """What is trained, and for how long; the proportions are those of DINO's multi-crop recipe.

    Attributes:
        steps: optimizer steps.
        batch_size: images a step.
        seed: of initialisation, sampling and augmentation.
        patch_size, embed_dim, depth, num_heads: of the ViT.
        global_size, local_size: pixels of the two global crops and of the local ones.
        local_crops: local crops an image, at least 1.
        learning_rate: peak, reached after a tenth of the steps.
        momentum: of the teacher at the start; it rises to 1 with a cosine.
        teacher_temperature: after the first third of the steps; 0.04 before.
        norm_in_head: batch norm in the projection head, which keeps small batches from collapsing.
        bf16: whether the backbones run under bfloat16 autocast; head and loss are in float32 either way.
        views: options of lightly's ``DINOTransform`` beside the sizes and the number of crops.
    """

    steps: int = 36
    batch_size: int = 32
    seed: int = 0
    patch_size: int = 8
    embed_dim: int = 128
    depth: int = 6
    num_heads: int = 4
    global_size: int = 64
    local_size: int = 32
    local_crops: int = 4
    learning_rate: float = 1e-3
    momentum: float = 0.9
    teacher_temperature: float = 0.06
    norm_in_head: bool = False
    bf16: bool = False
    views: dict[str, Any] = field(default_factory=dict)

    @property
    def arch_options(self) -> dict[str, Any]:
        """What ``ARCH`` is built with."""
        return {
            "img_size": self.global_size,
            "patch_size": self.patch_size,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "dynamic_img_size": True,
        }


class Method:
    """Student, teacher and optimizer of one spec."""

    def __init__(self, spec: str, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)  # the same initial weights for every method
        backbone = timm.create_model(ARCH.partition("/")[2], num_classes=0, **recipe.arch_options)
        heads = [
            DINOProjectionHead(recipe.embed_dim, 512, 64, PROTOTYPES, batch_norm=recipe.norm_in_head) for _ in range(2)
        ]
        heads[1].load_state_dict(heads[0].state_dict())  # its weight_norm refuses deepcopy
        self.spec, self.recipe = spec, recipe
        self.student = nn.Sequential(patch(backbone, spec), heads[0])
        self.teacher = nn.Sequential(copy.deepcopy(backbone), heads[1]).requires_grad_(False)
        warmup = max(recipe.steps // 3, 1)
        self.loss = DINOLoss(
            PROTOTYPES,
            warmup_teacher_temp_epochs=warmup,
            warmup_teacher_temp=0.04,
            teacher_temp=recipe.teacher_temperature,
        )
        decayed, plain = get_weight_decay_parameters([self.student])
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=0.04)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    @property
    def backbone(self) -> nn.Module:
        """The teacher's backbone: what DINO evaluates."""
        return self.teacher[0]

    def step(self, views: Sequence[Tensor], step: int) -> None:
        """One update from crops ``[B, 3, S, S]``, the two global ones first."""
        begin, recipe = time.perf_counter(), self.recipe
        self._schedule(step)
        with torch.no_grad():
            teacher_out = self._run(self.teacher, views[:2])
        student_out = [out for group in (views[:2], views[2:]) if group for out in self._run(self.student, group)]
        loss = self.loss(teacher_out, student_out, epoch=step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 3.0)
        self.optimizer.step()
        update_momentum(self.student, self.teacher, cosine_schedule(step, recipe.steps + 1, recipe.momentum, 1.0))
        self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - begin)

    def _run(self, network: nn.Sequential, views: Sequence[Tensor]) -> list[Tensor]:
        """Crops ``[B, 3, S, S]`` of one size to prototype scores ``[B, K]`` each.

        The head is never in bfloat16: early on, pictures differ by less than that resolves.
        """
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            tokens = network[0](torch.cat(list(views)))
        return list(network[1](tokens.float()).chunk(len(views)))

    def _schedule(self, step: int) -> None:
        steps = self.recipe.steps
        scale = cosine_warmup_schedule(step, steps + 1, 1.0, 1e-3, max(steps // 10, 1), 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * scale
        decay = cosine_schedule(step, steps + 1, 0.04, 0.4)
        self.optimizer.param_groups[0]["weight_decay"] = decay

    def state(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        for name in ("student", "teacher", "loss", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.losses, self.seconds = list(state["losses"]), list(state["seconds"])

    @property
    def step_seconds(self) -> float:
        """Median time of a step, without the first ones (compilation, allocation)."""
        return median(self.seconds[min(3, len(self.seconds) - 1) :])


class Crops:
    """DINO's multi-crop views of a list of image files; what step i gets depends on the seed and on i alone."""

    def __init__(self, files: Sequence[Path], recipe: Recipe) -> None:
        if not files:
            raise ValueError("there are no images to train on")
        self.images = [Image.open(file).convert("RGB") for file in files]
        self.recipe = recipe
        self.transform = DINOTransform(
            global_crop_size=recipe.global_size,
            local_crop_size=recipe.local_size,
            n_local_views=recipe.local_crops,
            **{"gaussian_blur": (0.5, 0.1, 0.2), "sigmas": (0.1, 1.0), **recipe.views},
        )

    def batch(self, step: int) -> list[Tensor]:
        """Views of one batch: 2 + local_crops tensors ``[B, 3, S, S]``."""
        rng = np.random.default_rng([self.recipe.seed, step])
        seed = int(rng.integers(2**31))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        chosen = rng.choice(len(self.images), self.recipe.batch_size, replace=self.recipe.batch_size > len(self.images))
        views = [self.transform(self.images[i]) for i in chosen]
        return [torch.stack(list(same)) for same in zip(*views, strict=True)]


def pretrain(
    files: Sequence[Path],
    specs: Sequence[str],
    recipe: Recipe,
    state_file: Path,
    progress: Callable[[int, list[Method]], None],
    save_every: int = 20,
    until: int | None = None,
) -> list[Method]:
    """Train one ViT for every spec, in lock step; continue from ``state_file`` if it is there.

    Args:
        files: training images.
        specs: plugin specs, one method each.
        recipe: what and how long.
        state_file: written every ``save_every`` steps and at the end, whole or not at all.
        progress: called with the steps done and the methods.
        save_every: steps.
        until: the step to stop after, with the schedules on their way; the next call goes on.

    Raises:
        ValueError: ``state_file`` was written by another recipe or for other specs.
    """
    methods = [Method(spec, recipe) for spec in specs]
    crops = Crops(files, recipe)
    started = _resume(methods, recipe, state_file)
    progress(started, methods)
    end = recipe.steps if until is None else min(until, recipe.steps)
    for step in range(started, end):
        views = crops.batch(step)
        turn = step % len(methods)  # nobody always goes first
        for method in methods[turn:] + methods[:turn]:
            torch.manual_seed(recipe.seed + step)
            method.step(views, step)
        done = step + 1
        if done % save_every == 0 or done == end:
            _save(methods, recipe, done, state_file)
        progress(done, methods)
    return methods


def _save(methods: Sequence[Method], recipe: Recipe, step: int, path: Path) -> None:
    contents = {"step": step, "recipe": asdict(recipe), "methods": {m.spec: m.state() for m in methods}}
    with written(path) as partial, partial.open("wb") as file:  # opened here, or the name would be in the contents
        torch.save(contents, file)


def _resume(methods: Sequence[Method], recipe: Recipe, path: Path) -> int:
    if not path.exists():
        return 0
    saved = read(path)
    specs = [method.spec for method in methods]
    if saved["recipe"] != asdict(recipe) or list(saved["methods"]) != specs:
        raise ValueError(
            f"{path} holds {list(saved['methods'])} trained with {saved['recipe']}, and {specs} with {asdict(recipe)} "
            "was asked for: choose another --out, or remove that file"
        )
    for method in methods:
        method.load(saved["methods"][method.spec])
    return int(saved["step"])
