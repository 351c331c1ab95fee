"""A pretrained backbone made sparse, in two or three minutes: as patched, calibrated, adapted; probed and drawn."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..adapt import Recipe, distil
from ..adapt.calibrate import calibrate
from ..analysis.attention import statistics
from ..analysis.images import MEAN, STD
from ..checkpoints import build
from ..codebases.features import ViTFeatures
from ..data.scenes import NUM_CLASSES, Scene, render
from ..files import write_text, written
from ..patching import patch, spec_of, unpatch, verify
from ..progress import printed_progress
from ..text import columns
from .folder import claim
from .linear import Score, fit, score
from .picture import load_images
from .sparse_picture import Seen, draw_sparse, look

__all__ = ["WEIGHTS", "Amount", "Row", "show_backbone", "show_shipped"]

WEIGHTS = Path(__file__).parent / "weights"
"""Two small ViTs in the format of timm's hub, pre-trained on rendered objects: ``integration/demo`` makes them."""

GRID = (16, 20)
"""Patches of a scene."""
SIDE = 18
"""Patches along a side of the squares that are learned from: as many as a scene has, which decides about zeros."""
SEED, SEEN_SEED = 300, 301
"""Of the scenes that are judged, and of those that factors are fitted on and the backbone learns from."""
SHOWN = 3
"""Scenes that are drawn."""
TARGET = "entmax15"
HEAD = ("", "mIoU, softmax's head", "mIoU, own head", "cosine to softmax", "weights exactly 0")


@dataclass(frozen=True)
class Amount:
    """How much is done for a table.

    Attributes:
        train, val: scenes that heads are fitted on and that they are scored on.
        fit: scenes that factors are calibrated on.
        seen: scenes that the backbone is adapted on.
        adapt: how; at a size with as many patches as a scene.
    """

    train: int = 96
    val: int = 48
    fit: int = 16
    seen: int = 200
    adapt: Recipe = field(default_factory=lambda: Recipe(minutes=1.0, batch=8))


SHIPPED = Amount(train=400, val=400, adapt=Recipe(minutes=1.0, lr=1e-3, sparsity=0.9))
"""What there is time for with ViTs of half a million parameters."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        model: what it is called.
        spec: what it is patched with.
        kept: mIoU of the linear head that was fitted to softmax, with the interval over images; None of a backbone
            that learned to see by itself.
        miou: of a linear head that is fitted to its own frozen patch features.
        cosine: mean cosine of its patch features to softmax's; None as ``kept``.
        zeros: share of attention weights that are exactly zero.
    """

    model: str
    spec: str
    kept: Score | None
    miou: Score
    cosine: float | None
    zeros: float


@dataclass(frozen=True)
class _Scenes:
    images: Tensor
    labels: Tensor
    pictures: list[NDArray[np.uint8]]
    queries: list[tuple[int, int]]


def show_shipped(out: Path, say: Callable[[str], None] = print, amount: Amount | None = None) -> list[Row]:
    """``show_backbone`` with the weights that come with the package, beside the same ViT pre-trained with entmax-1.5.

    Raises:
        ValueError: as ``show_backbone``.
    """
    return show_backbone(WEIGHTS / "softmax", out, say=say, amount=amount or SHIPPED, sparse=WEIGHTS / TARGET)


def show_backbone(
    checkpoint: Path,
    out: Path,
    arch: str = "auto",
    repo: str | None = None,
    say: Callable[[str], None] = print,
    amount: Amount | None = None,
    sparse: Path | None = None,
) -> list[Row]:
    """Show what sparse attention makes of a softmax backbone; write ``table.json`` and ``picture.png`` in ``out``.

    One backbone four times: with softmax, with entmax-1.5 in its place, with entmax-1.5 and a factor on the scores of
    each head that is fitted without training, and distilled from there for a minute. Each is verified and gets a
    linear segmentation head of its own on rendered scenes.

    Args:
        checkpoint: a ViT pre-trained with softmax.
        out: folder; a run with the same backbone that was interrupted goes on with its distillation.
        arch, repo: as probes take them, where the checkpoint does not tell.
        say: prints a line.
        amount: how much is done.
        sparse: the same ViT pre-trained with entmax-1.5, where there is one: a fifth row.

    Raises:
        CheckpointError: as ``attn_plugins.checkpoints.build``.
        ValueError: the checkpoint records another spec than softmax, or ``out`` holds another run.
    """
    begin = time.monotonic()
    model, told = build(arch, checkpoint, "auto", repo)
    if told["plugins"] != "softmax":
        raise ValueError(
            f"{checkpoint} was trained with {told['plugins']!r}, and what is shown starts from softmax; "
            f"`attn-plugins report {checkpoint} --data IMAGES` shows a model as it is"
        )
    amount = amount or Amount()
    own = None if sparse is None else build(checkpoint=sparse)
    claim(out, {"backbones": [told["digest"]] + ([own[1]["digest"]] if own else []), "amount": asdict(amount)})
    stages = 6 if own else 5
    say(f"[1/{stages}] rendering {amount.train + amount.val + amount.seen} scenes for {told['arch']}")
    side = ViTFeatures(model).patch_size
    scenes, files = _scenes(side, amount), _files(out / "scenes", side, amount.seen)
    table = _Table(scenes, amount, say)
    patch(model, "softmax")  # which computes what it did, and is verified and drawn like the others
    say(f"[2/{stages}] softmax")
    table.add("softmax", model)
    say(f"[3/{stages}] {TARGET}, patched only: the same weights, nothing fitted")
    patch(model, TARGET)
    table.add(f"{TARGET}, patched only", model)
    say(f"[4/{stages}] {TARGET}, calibrated: a factor on the scores of each head, from {amount.fit} scenes, no labels")
    patch(model, "softmax")
    student = copy.deepcopy(model)
    calibrate(model, load_images(files[: amount.fit]), TARGET)
    table.add(f"{TARGET}, calibrated", model)
    say(f"[5/{stages}] {TARGET}, adapted: distilled from there on {amount.seen} scenes without labels")
    unpatch(student)
    show = printed_progress("steps")
    recipe = replace(amount.adapt, sizes=(SIDE * side,))
    done = distil(student, files, TARGET, recipe, folder=out / "adapt", progress=show)
    say(f"      {done}")
    table.add(f"{TARGET}, adapted", student)
    if own:
        say(f"[6/{stages}] {TARGET}, pre-trained: from the same seed on the same crops, never softmax")
        table.add(f"{TARGET}, pre-trained", own[0], same=False)
    chance = score(torch.zeros_like(scenes.labels[amount.train :]), scenes.labels[amount.train :], NUM_CLASSES + 1)
    draw_sparse(out / "picture.png", scenes.pictures, scenes.queries, table.seen)
    contents: dict[str, Any] = {
        "backbone": told,
        "amount": asdict(amount),
        "adapted": {"steps": done.recipe.steps, "seconds": round(done.seconds, 1)},
        "chance": asdict(chance),
        "rows": [asdict(row) for row in table.rows],
    }
    write_text(out / "table.json", json.dumps(contents, indent=1, default=str) + "\n")
    say("")
    say("\n".join(_lines(table.rows, chance)))
    say("")
    say(f"picture  {out / 'picture.png'}")
    say(f"table    {out / 'table.json'}")
    say(
        f"{time.monotonic() - begin:.0f} s. mIoU of linear heads that were fitted on {amount.train} rendered scenes, "
        f"patch by patch, on {amount.val} others (95 % over images): softmax's own head kept, as where you have one; "
        "and a head of each."
    )
    return table.rows


class _Table:
    """What each model is worth and what it sees, one after another."""

    def __init__(self, scenes: _Scenes, amount: Amount, say: Callable[[str], None]) -> None:
        self.scenes, self.train, self.say = scenes, amount.train, say
        self.rows: list[Row] = []
        self.seen: dict[str, Seen] = {}
        self.first: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None

    def add(self, name: str, model: nn.Module, *, same: bool = True) -> None:
        """Verify a patched model, fit a head on its features and look at what it attends to.

        The first is softmax's; ``same``: whether the others are made of it.
        """
        train, labels, images = self.train, self.scenes.labels, self.scenes.images
        checked = verify(model, images[:1])
        answered = sum(line.answered > 0 for line in checked)
        self.say(f"      verified: {answered} of {len(checked)} layers compute {spec_of(model)}")
        features = _features(model, images)
        head = fit(features[:train], labels[:train], NUM_CLASSES + 1)
        self.first = self.first or (features, head)
        theirs, kept = self.first

        def scored(head: Callable[[Tensor], Tensor]) -> Score:
            return score(head(features[train:]), labels[train:], NUM_CLASSES + 1)

        like = F.cosine_similarity(features[train:], theirs[train:], dim=-1).mean().item() if same else None
        zeros = statistics(model, images[train : train + 8]).zero_share.mean().item()
        row = Row(name, str(spec_of(model)), scored(kept) if same else None, scored(head), like, zeros)
        self.rows.append(row)
        self.seen[name] = look(model, images[train : train + SHOWN], self.scenes.queries)
        cells = zip(HEAD[1:], _cells(row)[1:], strict=True)
        self.say("      " + ", ".join(f"{name} {cell}" for name, cell in cells if cell))


@torch.no_grad()
def _features(model: nn.Module, images: Tensor) -> Tensor:
    vit, show, found = ViTFeatures(model), printed_progress("images"), list[Tensor]()
    for batch in images.split(8):
        found.append(vit(batch, [-1])[0][0].flatten(2).transpose(1, 2))
        show(sum(map(len, found)), len(images))
    return torch.cat(found)


def _scenes(patch_size: int, amount: Amount) -> _Scenes:
    drawn = [render(SEED, index, _size(patch_size)) for index in range(amount.train + amount.val)]
    stack = torch.stack([torch.from_numpy(scene.image) for scene in drawn]).float() / 255
    images = ((stack - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()
    middle = slice(patch_size // 2, None, patch_size)
    labels = torch.stack([torch.from_numpy(scene.mask[middle, middle].copy()) for scene in drawn])
    shown = drawn[amount.train : amount.train + SHOWN]
    queries = [_on_nearest(scene, patch_size) for scene in shown]
    return _Scenes(images, labels.long().flatten(1), [scene.image for scene in shown], queries)


def _files(folder: Path, patch_size: int, count: int) -> list[Path]:
    """Scenes on disk: what a user has."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:04d}.png" for index in range(count)]
    for index, file in enumerate(files):
        with written(file) as partial:
            Image.fromarray(render(SEEN_SEED, index, _size(patch_size)).image).save(partial, "PNG")
    return files


def _size(patch_size: int) -> tuple[int, int]:
    return GRID[0] * patch_size, GRID[1] * patch_size


def _on_nearest(scene: Scene, patch_size: int) -> tuple[int, int]:
    """The patch in the middle of the nearest object."""
    rows, cols = np.nonzero(scene.instances == len(scene.boxes))
    return int(np.median(rows)) // patch_size, int(np.median(cols)) // patch_size


def _lines(rows: Sequence[Row], chance: Score) -> list[str]:
    head, *body = columns([HEAD, *map(_cells, rows), ("background everywhere (chance)", str(chance), "", "", "")])
    return [head, "-" * len(head), *body]


def _cells(row: Row) -> tuple[str, ...]:
    kept, cosine = ("" if row.kept is None else str(row.kept)), ("" if row.cosine is None else f"{row.cosine:.3f}")
    return row.model, kept, str(row.miou), cosine, f"{100 * row.zeros:.1f} %"
