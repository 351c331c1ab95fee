"""Cityscapes fine annotations: PNG images, 8-bit masks of label ids and of the 19 train ids (255 = void).

    leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png
    gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelTrainIds.png, ..._gtFine_labelIds.png

The floor is written as road, hills as vegetation, sky as sky; the twenty object classes share the other sixteen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attn_plugins.data.backdrop import FLOOR, HILLS, SKY
from attn_plugins.data.layouts.common import Progress, build_root, samples, save_image, save_labels, void_border
from attn_plugins.data.scenes import Scene

__all__ = ["LABEL_IDS", "write_cityscapes"]

CITIES = {"train": "aachen", "val": "frankfurt"}
# Label id of every train id, as cityscapesScripts numbers them; train id 255 is label id 0, "unlabeled".
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_ROAD, _VEGETATION, _SKY, _VOID = 0, 8, 10, 255


def _train_ids(scene: Scene) -> NDArray[np.uint8]:
    things = np.asarray([i for i in range(19) if i not in (_ROAD, _VEGETATION, _SKY)], np.uint8)
    of_stuff = np.zeros(5, np.uint8)
    of_stuff[[FLOOR, SKY, HILLS]] = (_ROAD, _SKY, _VEGETATION)
    ids = np.where(scene.mask > 0, things[(scene.mask.astype(np.int16) - 1) % len(things)], of_stuff[scene.stuff])
    ids[void_border(scene.instances, 1)] = _VOID
    return ids


def write_cityscapes(
    root: str | Path,
    num_train: int = 100,
    num_val: int = 20,
    seed: int = 0,
    size: tuple[int, int] = (512, 1024),
    *,
    progress: Progress | None = None,
) -> Path:
    """Write outdoor scenes below ``root``; see ``attn_plugins.data.layouts`` for arguments and errors."""
    parameters = {"num_train": num_train, "num_val": num_val, "seed": seed, "size": list(size)}

    def fill(folder: Path) -> None:
        label_id = np.zeros(256, np.uint8)
        label_id[: len(LABEL_IDS)] = LABEL_IDS
        for split, number, scene in samples(num_train, num_val, seed, size, progress=progress, indoor=False):
            city = CITIES[split]
            stem = f"{city}_{number:06d}_000019"
            save_image(folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", scene.image)
            ids = _train_ids(scene)
            save_labels(folder / "gtFine" / split / city / f"{stem}_gtFine_labelTrainIds.png", ids)
            save_labels(folder / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", label_id[ids])

    return build_root(root, "cityscapes", parameters, fill)
