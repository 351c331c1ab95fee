"""ADE20K scene parsing (ADEChallengeData2016): 8-bit grey masks, 0 = void, 1..150 = class.

    ADEChallengeData2016/
        images/{training,validation}/ADE_train_00000001.jpg, ADE_val_00000001.jpg
        annotations/{training,validation}/ADE_train_00000001.png, ...

The rendered object classes 1..20 are written as ADE20K classes 21..40; wall, sky, floor, earth and mountain as
themselves. Probes read the masks with ``reduce_zero_label=True``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attn_plugins.data.backdrop import FLOOR, HILLS, SKY, WALL
from attn_plugins.data.layouts.common import Progress, build_root, samples, save_image, save_labels, void_border
from attn_plugins.data.scenes import Scene

__all__ = ["write_ade20k"]

FOLDERS = {"train": "training", "val": "validation"}
_FIRST_OBJECT = 20  # object class c is ADE20K class 20 + c
_WALL, _SKY, _INDOOR_FLOOR, _EARTH, _MOUNTAIN = 1, 3, 4, 14, 17


def _labels(scene: Scene) -> NDArray[np.uint8]:
    indoor = bool((scene.stuff == WALL).any())
    of_stuff = np.zeros(5, np.uint8)
    of_stuff[[FLOOR, SKY, HILLS, WALL]] = (_INDOOR_FLOOR if indoor else _EARTH, _SKY, _MOUNTAIN, _WALL)
    labels = np.where(scene.mask > 0, scene.mask + np.uint8(_FIRST_OBJECT), of_stuff[scene.stuff])
    labels[void_border(scene.instances, 1)] = 0
    return labels


def write_ade20k(
    root: str | Path,
    num_train: int = 200,
    num_val: int = 50,
    seed: int = 0,
    size: tuple[int, int] = (512, 683),
    *,
    progress: Progress | None = None,
) -> Path:
    """Write scenes as ``root/ADEChallengeData2016``; see ``attn_plugins.data.layouts`` for arguments and errors."""
    parameters = {"num_train": num_train, "num_val": num_val, "seed": seed, "size": list(size)}

    def fill(folder: Path) -> None:
        for split, number, scene in samples(num_train, num_val, seed, size, progress=progress):
            name = f"ADE_{split}_{number + 1:08d}"
            save_image(folder / "images" / FOLDERS[split] / f"{name}.jpg", scene.image)
            save_labels(folder / "annotations" / FOLDERS[split] / f"{name}.png", _labels(scene))

    return build_root(Path(root) / "ADEChallengeData2016", "ade20k", parameters, fill)
