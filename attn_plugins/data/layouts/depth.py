"""How depth is stored in 16-bit PNGs: metres times a scale, 0 where nothing was measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["KITTI_SCALE", "MILLIMETRES", "encode", "rotate_left", "rotate_right"]

MILLIMETRES = 1000  # NYUv2, SUN RGB-D (once its bits are rotated back)
KITTI_SCALE = 256


def encode(depth: NDArray[np.float32], scale: int, valid: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Depth [H, W] in metres as stored integers; 0 where not ``valid``.

    Raises:
        ValueError: a valid depth does not fit into 1..65535.
    """
    stored = np.rint(depth * scale)
    if valid.any() and not (stored[valid].min() >= 1 and stored[valid].max() <= 65535):
        low, high = float(depth[valid].min()), float(depth[valid].max())
        raise ValueError(f"depth from {low} to {high} m does not fit into 16 bits at {scale} a metre")
    return np.where(valid, stored, 0).astype(np.uint16)


def rotate_left(stored: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Millimetres to what SUN RGB-D's files hold: the 16 bits rotated left by 3."""
    rotated: NDArray[np.uint16] = (stored << np.uint16(3)) | (stored >> np.uint16(13))
    return rotated


def rotate_right(stored: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """What SUN RGB-D's files hold to millimetres."""
    rotated: NDArray[np.uint16] = (stored >> np.uint16(3)) | (stored << np.uint16(13))
    return rotated
