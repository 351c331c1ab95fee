"""KITTI, Eigen's split: PNG images, 16-bit PNG depth in 1/256 m, 0 = no laser return.

    2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png                          raw data
    data_depth_annotated/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/....png     improved ground truth
    data_depth_velodyne/2011_09_26_drive_0001_sync/proj_depth/velodyne_raw/image_02/....png     raw ground truth
    eigen_train_files_with_gt.txt, eigen_test_files_with_gt.txt     lines "IMAGE DEPTH FOCAL"

IMAGE lies below the root, DEPTH below data_depth_annotated/ (the official archive's train/ and val/ merged, as BTS
does) and is ``None`` where there is no map for a test image: 45 of 697. The raw ground truth of a line is found by
replacing data_depth_annotated with data_depth_velodyne and groundtruth with velodyne_raw; KITTI's archives hold both
for the same frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from attn_plugins.data.backdrop import SKY
from attn_plugins.data.layouts.common import Progress, build_root, samples, save_depth, save_image, save_lines
from attn_plugins.data.layouts.depth import KITTI_SCALE, encode

__all__ = ["IMPROVED", "RAW", "SPLITS", "write_kitti"]

IMPROVED = "data_depth_annotated"
RAW = "data_depth_velodyne"
SPLITS = {"train": "eigen_train_files_with_gt.txt", "val": "eigen_test_files_with_gt.txt"}
_DATE = "2011_09_26"
_DRIVES = {"train": f"{_DATE}_drive_0001_sync", "val": f"{_DATE}_drive_0002_sync"}
MAX_DEPTH = 80.0
# Every 15th test image goes without ground truth, about as many as 45 of 697.
_WITHOUT_DEPTH = 15


def write_kitti(
    root: str | Path,
    num_train: int = 100,
    num_val: int = 30,
    seed: int = 0,
    size: tuple[int, int] = (375, 1242),
    *,
    progress: Progress | None = None,
) -> Path:
    """Write outdoor scenes below ``root``; see ``attn_plugins.data.layouts`` for arguments and errors."""
    parameters = {"num_train": num_train, "num_val": num_val, "seed": seed, "size": list(size)}

    def fill(folder: Path) -> None:
        height, width = size
        rows, columns = np.mgrid[:height, :width]
        # Scan lines: the improved ground truth gathers several sweeps, the raw one is a single sweep.
        improved_lines = (rows % 2 == 0) & (columns % 2 == 0) & (rows > 0.3 * height)
        raw_lines = improved_lines & (rows % 6 == 0)
        lines: dict[str, list[str]] = {split: [] for split in SPLITS}
        drawn = samples(num_train, num_val, seed, size, progress=progress, indoor=False, far=MAX_DEPTH)
        for split, number, scene in drawn:
            drive, file = _DRIVES[split], f"{number + 5:010d}.png"
            image = f"{_DATE}/{drive}/image_02/data/{file}"
            improved = f"{drive}/proj_depth/groundtruth/image_02/{file}"
            raw = f"{drive}/proj_depth/velodyne_raw/image_02/{file}"
            returned = scene.stuff != SKY
            save_image(folder / image, scene.image)
            if split == "val" and number % _WITHOUT_DEPTH == _WITHOUT_DEPTH - 1:
                improved = "None"
            else:
                save_depth(folder / RAW / raw, encode(scene.depth, KITTI_SCALE, returned & raw_lines))
                save_depth(folder / IMPROVED / improved, encode(scene.depth, KITTI_SCALE, returned & improved_lines))
            lines[split].append(f"{image} {improved} {scene.focal:.4f}")
        for split, name in SPLITS.items():
            save_lines(folder / name, lines[split])

    return build_root(root, "kitti", parameters, fill)
