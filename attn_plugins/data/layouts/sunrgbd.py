"""SUN RGB-D: JPEG images, 16-bit PNG depth in millimetres with the bits rotated left by 3, as the release stores it.

    SUNRGBD/{kv1,kv2,realsense,xtion}/SET/ID/
        image/ID.jpg
        depth/ID.png          as measured, 0 where nothing was
        depth_bfx/ID.png      holes filled
        intrinsics.txt, scene.txt
    SUNRGBD_train_splits.txt, SUNRGBD_val_splits.txt     lines "IMAGE DEPTH", paths below the root

**Rotated** depth is what is written and what is expected; convert nothing. Stored values decode to millimetres by
rotating right by 3, and, since the depth stays under 8.192 m, equal depth in metres times 8000. The splits written
here name depth_bfx; a split file that names depth/ is as good.
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
from attn_plugins.data.layouts.depth import MILLIMETRES, encode, rotate_left

__all__ = ["SPLITS", "write_sunrgbd"]

SPLITS = {"train": "SUNRGBD_train_splits.txt", "val": "SUNRGBD_val_splits.txt"}
_SENSORS = ("kv1/b3dodata", "kv2/kinect2data", "realsense/lg", "xtion/sun3ddata")
MAX_DEPTH = 8.0


def write_sunrgbd(
    root: str | Path,
    num_train: int = 100,
    num_val: int = 50,
    seed: int = 0,
    size: tuple[int, int] = (530, 730),
    *,
    progress: Progress | None = None,
) -> Path:
    """Write indoor scenes below ``root``; see ``attn_plugins.data.layouts`` for arguments and errors."""
    parameters = {"num_train": num_train, "num_val": num_val, "seed": seed, "size": list(size)}

    def fill(folder: Path) -> None:
        height, width = size
        lines: dict[str, list[str]] = {split: [] for split in SPLITS}
        drawn = samples(num_train, num_val, seed, size, progress=progress, indoor=True, far=MAX_DEPTH)
        for split, number, scene in drawn:
            name = f"{number:06d}"
            place = f"SUNRGBD/{_SENSORS[number % len(_SENSORS)]}/{split}_{name}"
            edges = void_border(scene.instances, 1)
            save_image(folder / place / "image" / f"{name}.jpg", scene.image)
            for kind, measured in (("depth", ~edges), ("depth_bfx", scene.depth > 0)):
                stored = encode(scene.depth, MILLIMETRES, measured)
                save_depth(folder / place / kind / f"{name}.png", rotate_left(stored))
            focal = f"{scene.focal:.4f}"
            intrinsics = [f"{focal} 0 {width / 2}", f"0 {focal} {height / 2}", "0 0 1"]
            save_lines(folder / place / "intrinsics.txt", intrinsics)
            save_lines(folder / place / "scene.txt", ["room"])
            lines[split].append(f"{place}/image/{name}.jpg {place}/depth_bfx/{name}.png")
        for split, name in SPLITS.items():
            save_lines(folder / name, lines[split])

    return build_root(root, "sunrgbd", parameters, fill)
