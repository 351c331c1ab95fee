"""NYU Depth v2 as BTS prepares it: JPEG images, 16-bit PNG depth in millimetres, 0 = not measured.

    sync/SCENE/rgb_00000.jpg, sync_depth_00000.png                      training
    official_splits/test/SCENE/rgb_00000.jpg, sync_depth_00000.png      test
    nyudepthv2_train_files_with_gt.txt     lines "IMAGE DEPTH FOCAL", paths below sync/
    nyudepthv2_test_files_with_gt.txt      the same, paths below official_splits/test/

Paths in the split files may begin with a slash, as those of BTS do. mmseg's own ``NYUDataset`` wants another layout
(images/ and annotations/ with the same names), which has no split files.
"""

from __future__ import annotations

from pathlib import Path

from attn_plugins.data.layouts.common import (
    Progress,
    build_root,
    samples,
    save_depth,
    save_image,
    save_lines,
    void_border,
)
from attn_plugins.data.layouts.depth import MILLIMETRES, encode

__all__ = ["SPLITS", "write_nyuv2"]

# Split name -> (split file, folder its paths are below).
SPLITS = {
    "train": ("nyudepthv2_train_files_with_gt.txt", "sync"),
    "val": ("nyudepthv2_test_files_with_gt.txt", "official_splits/test"),
}
_ROOMS = ("bathroom", "bedroom", "kitchen", "living_room", "office")
MAX_DEPTH = 10.0


def write_nyuv2(
    root: str | Path,
    num_train: int = 200,
    num_val: int = 50,
    seed: int = 0,
    size: tuple[int, int] = (480, 640),
    *,
    progress: Progress | None = None,
) -> Path:
    """Write indoor scenes below ``root``; see ``attn_plugins.data.layouts`` for arguments and errors."""
    parameters = {"num_train": num_train, "num_val": num_val, "seed": seed, "size": list(size)}

    def fill(folder: Path) -> None:
        lines: dict[str, list[str]] = {split: [] for split in SPLITS}
        drawn = samples(num_train, num_val, seed, size, progress=progress, indoor=True, far=MAX_DEPTH)
        for split, number, scene in drawn:
            room = _ROOMS[number % len(_ROOMS)] + ("_0001a" if split == "train" else "")
            image, depth = f"{room}/rgb_{number:05d}.jpg", f"{room}/sync_depth_{number:05d}.png"
            below = folder / SPLITS[split][1]
            save_image(below / image, scene.image)
            # The sensor sees nothing along an object's outline.
            measured = ~void_border(scene.instances, 1)
            save_depth(below / depth, encode(scene.depth, MILLIMETRES, measured))
            slash = "/" if split == "train" else ""
            lines[split].append(f"{slash}{image} {slash}{depth} {scene.focal:.4f}")
        for split, (name, _) in SPLITS.items():
            save_lines(folder / name, lines[split])

    return build_root(root, "nyuv2", parameters, fill)
