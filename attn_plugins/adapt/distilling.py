"""``distil``: a softmax backbone becomes a sparse one that has its features, learned from pictures without labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.digest import tensors_digest
from ..codebases.features import ViTFeatures, evenly_spaced
from ..patching import spec_of
from ..progress import Progress
from ..spec import Spec, parse
from .parameters import add_lora, merge_lora, require_lora
from .recipe import STEPS, Recipe
from .running import Run, place
from .snapshots import Folder
from .start import Moving, begin, calibrates
from .views import Views

__all__ = ["Distilled", "distil"]

CALIBRATED_ON = 12
"""Pictures."""
DEFAULT_SIDE = 14
"""Patches along a picture's side, where no sizes are given."""


@dataclass(frozen=True)
class Distilled:
    """What ``distil`` did.

    Attributes:
        spec: of the model now.
        recipe: with sizes, layers and steps as they were used.
        losses: of each step, over all processes.
        seconds: of training, those before an interruption too.
        resumed: the step that it went on from; 0 for a run in one go.
    """

    spec: str
    recipe: Recipe
    losses: tuple[float, ...]
    seconds: float
    resumed: int = 0

    def __str__(self) -> str:
        steps = len(self.losses)
        first, last = (sum(some) / len(some) for some in (self.losses[:10], self.losses[-10:]))
        return f"{self.spec}: {steps} steps in {self.seconds:.0f} s, loss {first:.4f} to {last:.4f}"


def distil(
    model: nn.Module,
    files: Sequence[Path],
    spec: str | Spec = "entmax15",
    recipe: Recipe | None = None,
    *,
    folder: Path | None = None,
    snapshot_minutes: float = 5.0,
    workers: int = 0,
    begun: Callable[[nn.Module], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Distilled:
    """Patch a pretrained ViT in place and train it, on pictures without labels, to have the features that it had.

    The teacher is a copy of the model as it was. By default factors on the scores are fitted first
    (``attn_plugins.calibrate``), and training begins from there. The same seed gives the same result, also where a
    run was killed and started again with the same ``folder``; on other numbers of processes the same up to rounding.
    Under ``torch.distributed`` every process calls it, with the model on its own device.

    Args:
        model: a ViT, with softmax or whatever it was trained with; put into eval mode, in which it also trains.
        files: pictures; a dozen of them are calibrated on.
        spec: what the model shall be patched with, token mechanisms included.
        recipe: how, see ``attn_plugins.adapt.Recipe``.
        folder: where snapshots are kept; None: nowhere.
        snapshot_minutes: time between two of them.
        workers: processes that read pictures; 0 reads them in this one.
        begun: is called with the model as training finds it, patched and calibrated; also when a run goes on.
        progress: is called with (steps done, all of them).
        options: instead of ``recipe``, or over it: its fields by name (``steps=300``).

    Returns:
        Losses, time, and the recipe as it was followed.

    Raises:
        UnsupportedModelError: no ViT whose features can be read, or its attention cannot be patched.
        ValueError: an option does not fit another or the model; the folder holds another run. The model is then as it
            was. Training itself stopped being finite; the model is then half trained.
    """
    recipe = replace(recipe or Recipe(), **options)
    wanted = parse(spec)
    calibrates(model, wanted, recipe)  # raises before anything is changed
    if recipe.train == "lora":
        require_lora()
    recipe = _settled(ViTFeatures(model.eval()), recipe, len(files))
    _, world = place()
    if recipe.batch % world:
        raise ValueError(f"batch={recipe.batch} is over all processes, of which there are {world}: give a multiple")
    teacher = copy.deepcopy(model).requires_grad_(False)
    kept = None if folder is None else Folder(folder, _identity(teacher, files, wanted, recipe))
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        begin(model, wanted, recipe, _calibration(model, files, recipe))
    if begun is not None:
        begun(model)
    if recipe.train == "lora":
        add_lora(model, recipe.lora_rank, recipe.seed)
    run = Run(model, teacher, files, recipe, workers)
    steps = run.planned(None if kept is None else kept.steps)
    moving = Moving(model, recipe, steps)
    run.train(steps, moving, kept, snapshot_minutes * 60, progress)
    moving.finish()
    if recipe.train == "lora":
        merge_lora(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(gradients.get(name, True))
    followed = replace(recipe, steps=steps, minutes=None)
    return Distilled(spec_of(model) or "softmax", followed, tuple(run.losses), run.seconds, run.first)


def _settled(vit: ViTFeatures, recipe: Recipe, files: int) -> Recipe:
    """With the sizes and layers that the model has by default.

    Raises:
        ValueError: there are no pictures, or sizes or layers that the model cannot have.
    """
    if not files:
        raise ValueError("distil needs pictures, some hundred or more; got none")
    sizes = recipe.sizes or (DEFAULT_SIDE * vit.patch_size,)
    odd = [size for size in sizes if size % vit.patch_size]
    if odd:
        raise ValueError(f"sizes={odd} are no multiples of the patch size, {vit.patch_size}")
    layers = recipe.layers or (evenly_spaced(vit.depth) if vit.depth >= 4 else tuple(range(vit.depth)))
    beyond = [layer for layer in layers if not 0 <= layer < vit.depth]
    if beyond:
        raise ValueError(f"layers={beyond} are none of the model's, 0 to {vit.depth - 1}")
    steps = STEPS if recipe.steps is None and recipe.minutes is None else recipe.steps
    return replace(recipe, sizes=sizes, layers=layers, steps=steps)


def _identity(teacher: nn.Module, files: Sequence[Path], spec: Spec, recipe: Recipe) -> dict[str, Any]:
    """What a result depends on."""
    weights = tensors_digest({**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}).hexdigest()
    pictures = [[file.name, file.stat().st_size] for file in files]
    return {"spec": str(spec), **asdict(recipe), "weights": weights, "pictures": pictures}


def _calibration(model: nn.Module, files: Sequence[Path], recipe: Recipe) -> list[Tensor]:
    """Pictures to calibrate on, whole, at each of the sizes."""
    device = next(model.parameters()).device
    plain = replace(recipe, crop=1.0, flip=0.0, mask=0.0, batch=min(CALIBRATED_ON, len(files)))
    found = []
    for size in dict.fromkeys(recipe.sizes):
        views = Views(files, plain, (size,), ViTFeatures(model).patch_size)
        found.append(torch.stack([views[0, index] for index in range(plain.batch)]).to(device))
    return found
