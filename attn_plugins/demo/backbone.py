"""A pretrained backbone made sparse, in a minute or two: verified, as patched, calibrated, probed, drawn."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..adapt.calibrate import calibrate
from ..analysis.attention import statistics
from ..analysis.images import MEAN, STD
from ..checkpoints import build
from ..codebases.features import ViTFeatures
from ..data.scenes import NUM_CLASSES, Scene, render
from ..files import write_text
from ..patching import patch, spec_of, verify
from ..progress import printed_progress
from ..text import columns
from .linear import Score, predict, score
from .sparse_picture import Seen, draw_sparse, look

__all__ = ["Row", "show_backbone"]

GRID = (16, 20)
"""Patches of a scene."""
TRAIN, VAL, FIT, SHOWN = 96, 48, 16, 3
"""Scenes that heads are fitted on, that they are scored on, that factors are calibrated on, and that are drawn."""
SEED = 300
TARGET = "entmax15"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        model: what it is called.
        spec: what it is patched with.
        miou: of a linear head on its frozen patch features, with the interval over images.
        cosine: mean cosine of its patch features to softmax's.
        zeros: share of attention weights that are exactly zero.
    """

    model: str
    spec: str
    miou: Score
    cosine: float
    zeros: float


@dataclass(frozen=True)
class _Scenes:
    images: Tensor
    labels: Tensor
    pictures: list[NDArray[np.uint8]]
    queries: list[tuple[int, int]]


def show_backbone(
    checkpoint: Path,
    out: Path,
    arch: str = "auto",
    repo: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Show what sparse attention makes of a softmax backbone; write `table.json` and `picture.png` in `out`.

    The same frozen weights three times: softmax, entmax-1.5 in its place, and entmax-1.5 with a factor on the scores
    of each head that is fitted without training. Each is verified and gets a linear segmentation head of its own on
    rendered scenes.

    Args:
        checkpoint: a ViT pre-trained with softmax.
        out: folder; files of an earlier run are replaced.
        arch, repo: as probes take them, where the checkpoint does not tell.
        say: prints a line.

    Raises:
        CheckpointError: as `attn_plugins.checkpoints.build`.
        ValueError: the checkpoint records another spec than softmax.
    """
    begin = time.monotonic()
    model, told = build(arch, checkpoint, "auto", repo)
    if told["plugins"] != "softmax":
        raise ValueError(
            f"{checkpoint} was trained with {told['plugins']!r}, and what is shown starts from softmax; "
            f"`attn-plugins report {checkpoint} --data IMAGES` shows a model as it is"
        )
    say(f"[1/4] rendering {TRAIN + VAL} scenes for {told['arch']}")
    scenes = _scenes(ViTFeatures(model).patch_size)
    rows, seen = list[Row](), dict[str, Seen]()
    patch(model, "softmax")  # which computes what it did, and is verified and drawn like the others
    say("[2/4] softmax")
    features = _add(rows, seen, "softmax", model, scenes, None, say)
    say(f"[3/4] {TARGET}, as patched: the same weights, nothing fitted")
    patch(model, TARGET)
    _add(rows, seen, f"{TARGET}, patched only", model, scenes, features, say)
    say(f"[4/4] {TARGET}, calibrated: a factor on the scores of each head, from {FIT} scenes without labels")
    patch(model, "softmax")
    _add(rows, seen, f"{TARGET}, calibrated", _calibrated(model, scenes), scenes, features, say)
    chance = score(torch.zeros_like(scenes.labels[TRAIN:]), scenes.labels[TRAIN:], NUM_CLASSES + 1)
    out.mkdir(parents=True, exist_ok=True)
    draw_sparse(out / "picture.png", scenes.pictures, scenes.queries, seen)
    contents: dict[str, Any] = {"backbone": told, "chance": asdict(chance), "rows": [asdict(row) for row in rows]}
    write_text(out / "table.json", json.dumps(contents, indent=1, default=str) + "\n")
    say("")
    say("\n".join(_table(rows, chance)))
    say("")
    say(f"picture  {out / 'picture.png'}")
    say(f"table    {out / 'table.json'}")
    say(f"{time.monotonic() - begin:.0f} s. mIoU of a linear head on {TRAIN} scenes, patch by patch, on {VAL} others")
    return rows


def _calibrated(model: nn.Module, scenes: _Scenes) -> nn.Module:
    calibrate(model, scenes.images[:FIT], TARGET)
    return model


def _add(
    rows: list[Row],
    seen: dict[str, Seen],
    name: str,
    model: nn.Module,
    scenes: _Scenes,
    softmax: Tensor | None,
    say: Callable[[str], None],
) -> Tensor:
    """Append what ``model`` is worth and what it sees; its patch features ``[N, P, C]``."""
    checked = verify(model, scenes.images[:1])
    answered = sum(line.answered > 0 for line in checked)
    say(f"      verified: {answered} of {len(checked)} layers compute {spec_of(model)}")
    features = _features(model, scenes.images)
    found = predict(features[:TRAIN], scenes.labels[:TRAIN], features[TRAIN:], NUM_CLASSES + 1)
    like = 1.0 if softmax is None else F.cosine_similarity(features[TRAIN:], softmax[TRAIN:], dim=-1).mean().item()
    zeros = statistics(model, scenes.images[TRAIN : TRAIN + 8]).zero_share.mean().item()
    rows.append(Row(name, str(spec_of(model)), score(found, scenes.labels[TRAIN:], NUM_CLASSES + 1), like, zeros))
    shown = scenes.images[TRAIN : TRAIN + SHOWN]
    seen[name] = look(model, shown, scenes.queries)
    say(f"      mIoU {rows[-1].miou}, cosine to softmax {like:.3f}, {100 * zeros:.0f} % of the weights are 0")
    return features


@torch.no_grad()
def _features(model: nn.Module, images: Tensor) -> Tensor:
    vit, show, found = ViTFeatures(model), printed_progress("images"), []
    for batch in images.split(8):
        found.append(vit(batch, [-1])[0][0].flatten(2).transpose(1, 2))
        show(sum(map(len, found)), len(images))
    return torch.cat(found)


def _scenes(patch_size: int) -> _Scenes:
    size = (GRID[0] * patch_size, GRID[1] * patch_size)
    drawn = [render(SEED, index, size) for index in range(TRAIN + VAL)]
    stack = torch.stack([torch.from_numpy(scene.image) for scene in drawn]).float() / 255
    images = ((stack - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()
    middle = slice(patch_size // 2, None, patch_size)
    labels = torch.stack([torch.from_numpy(scene.mask[middle, middle].copy()) for scene in drawn])
    shown = drawn[TRAIN : TRAIN + SHOWN]
    queries = [_on_nearest(scene, patch_size) for scene in shown]
    return _Scenes(images, labels.long().flatten(1), [scene.image for scene in shown], queries)


def _on_nearest(scene: Scene, patch_size: int) -> tuple[int, int]:
    """The patch in the middle of the nearest object."""
    rows, cols = np.nonzero(scene.instances == len(scene.boxes))
    return int(np.median(rows)) // patch_size, int(np.median(cols)) // patch_size


def _table(rows: list[Row], chance: Score) -> list[str]:
    cells: list[tuple[str, ...]] = [("", "mIoU (95 % over images)", "cosine to softmax", "weights exactly 0")]
    cells += [(row.model, str(row.miou), f"{row.cosine:.3f}", f"{100 * row.zeros:.1f} %") for row in rows]
    cells.append(("background everywhere (chance)", str(chance), "", ""))
    head, *body = columns(cells)
    return [head, "-" * len(head), *body]
