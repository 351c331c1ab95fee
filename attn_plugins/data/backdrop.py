"""What stands behind the objects: a floor in perspective, and a sky with hills or a wall.

One camera looks along the horizontal at height ``camera_height``; the row of the horizon is drawn per scene. A floor
point at row y is ``focal * camera_height / (y - horizon)`` metres away.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

__all__ = ["FLOOR", "HILLS", "SKY", "WALL", "Backdrop", "build", "colour", "smooth_noise"]

# Ids in `Scene.stuff`; 0 is where an object is.
FLOOR, SKY, HILLS, WALL = 1, 2, 3, 4

_TILE = 512


@dataclass
class Backdrop:
    """Background of one scene before any object is drawn.

    Attributes:
        image: [H, W, 3] float32 in [0, 1].
        depth: [H, W] float32, metres along the optical axis.
        stuff: [H, W] uint8, FLOOR, SKY, HILLS or WALL.
        haze: [3] colour that far things fade to.
        haze_per_metre: strength of that fade, 0 indoors.
        horizon: row where the floor would vanish.
        focal: pixels.
        camera_height: metres.
        nearest, farthest: metres at which an object may stand on the floor.
    """

    image: Array
    depth: Array
    stuff: NDArray[np.uint8]
    haze: Array
    haze_per_metre: float
    horizon: float
    focal: float
    camera_height: float
    nearest: float
    farthest: float

    def floor_row(self, distance: float) -> float:
        """Row at which something ``distance`` metres away touches the floor."""
        return self.horizon + self.focal * self.camera_height / distance


def colour(
    rng: np.random.Generator,
    saturation: tuple[float, float],
    value: tuple[float, float],
    hue: tuple[float, float] = (0.0, 1.0),
) -> Array:
    """A random colour [3], each part drawn from its range in [0, 1]."""
    rgb = colorsys.hsv_to_rgb(rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value))
    return np.asarray(rgb, np.float32)


@lru_cache(maxsize=1)
def _noise_tile() -> Array:
    """Periodic fractal noise [512, 512] in [0, 1], spectrum 1/f^1.7; the same for every scene, so made once."""
    rng = np.random.default_rng(0)
    fy, fx = np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None]
    amplitude = np.hypot(fy, fx)
    amplitude[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((_TILE, _TILE))) / amplitude**1.7
    tile = np.fft.irfft2(spectrum, s=(_TILE, _TILE))
    low, high = np.percentile(tile, (1, 99))
    noise: Array = np.clip((tile - low) / (high - low), 0, 1).astype(np.float32)
    return noise


def smooth_noise(rng: np.random.Generator, x: Array, y: Array, scale: float) -> Array:
    """Smooth noise in [0, 1] at positions x, y (same shape); one tile spans 1 / ``scale`` units."""
    offset = rng.integers(_TILE, size=2)
    # float32 positions on a distant floor reach 1e4 tiles' pixels: int32 is enough and the mask keeps them periodic.
    ix = (x * np.float32(scale * _TILE)).astype(np.int32) + offset[0]
    iy = (y * np.float32(scale * _TILE)).astype(np.int32) + offset[1]
    noise: Array = _noise_tile()[iy & (_TILE - 1), ix & (_TILE - 1)]
    return noise


def _floor_pattern(rng: np.random.Generator, x: Array, z: Array) -> Array:
    """Lightness of the floor in [-1, 1] at metres x (right) and z (away): tiles, planks, or grain."""
    kind = rng.choice(("tiles", "planks", "grain", "grain"))
    size = rng.uniform(0.5, 1.1)
    if kind == "tiles":
        checks: Array = (((np.floor(x / size) + np.floor(z / size)) % 2) * 2 - 1).astype(np.float32)
        checks *= np.float32(rng.uniform(0.25, 0.7))
        return checks
    if kind == "planks":
        board = np.floor(x / (0.3 * size))
        tone = (board * 0.618) % 1 * 2 - 1
        gap = (np.abs(x / (0.3 * size) - board - 0.5) > 0.46) * np.float32(0.8)
        planks: Array = (0.45 * tone - gap).astype(np.float32)
        return planks
    return np.zeros_like(x)


def build(rng: np.random.Generator, height: int, width: int, indoor: bool, far: float) -> Backdrop:
    """Draw the background of one scene.

    Args:
        rng: the scene's generator.
        height, width: pixels.
        indoor: a room with a wall, or open ground under a sky.
        far: metres; the deepest value in the depth map.
    """
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None]
    focal = 0.8 * float(np.sqrt(height * width))
    horizon = height * rng.uniform(0.24, 0.38) if indoor else height * rng.uniform(0.34, 0.5)
    camera_height = rng.uniform(1.2, 1.6)
    end = rng.uniform(0.45, 0.9) * far if indoor else far
    below = np.maximum(rows - horizon, 1e-3)
    z = np.minimum(focal * camera_height / below, end).astype(np.float32)
    is_floor = (rows - horizon) * end > focal * camera_height

    light = np.float32(rng.uniform(0.9, 1.12))
    # Earth, sand, grass and moss outside; any faint colour inside.
    base = colour(rng, (0.1, 0.38), (0.45, 0.7)) if indoor else colour(rng, (0.2, 0.5), (0.42, 0.66), (0.04, 0.42))
    x = (columns - width / 2) * z / focal
    zz = np.broadcast_to(z, x.shape)
    grain = smooth_noise(rng, x, zz, 0.22) + 0.5 * smooth_noise(rng, x, zz, 1.3) - 0.75
    contrast = np.exp(-z / np.float32(0.35 * end))
    tone = (0.16 * _floor_pattern(rng, x, zz) + 0.24 * grain) * contrast + 0.08 * grain
    floor = base * (1 + tone[..., None]) * light

    upper = _wall(rng, rows, columns, z, focal, horizon, camera_height, end) if indoor else None
    stuff = np.where(is_floor, np.uint8(FLOOR), np.uint8(WALL if indoor else SKY))
    stuff = np.ascontiguousarray(np.broadcast_to(stuff, (height, width)))
    depth = np.ascontiguousarray(np.broadcast_to(z, (height, width)))
    if upper is not None:
        haze, haze_per_metre = base, 0.0
        image = np.where(is_floor[..., None], floor, upper)
    else:
        sky, haze, hills, ridge_depth = _sky(rng, rows, columns, horizon, far)
        haze_per_metre = 1.6 / far
        fade = (1 - np.exp(-z * np.float32(haze_per_metre)))[..., None]
        image = np.where(is_floor[..., None], floor * (1 - fade) + haze * fade, sky)
        stuff[hills & (stuff == SKY)] = HILLS
        depth = np.where(stuff == HILLS, ridge_depth, depth).astype(np.float32)
    return Backdrop(
        image=image.astype(np.float32),
        depth=depth,
        stuff=stuff,
        haze=haze,
        haze_per_metre=haze_per_metre,
        horizon=horizon,
        focal=focal,
        camera_height=camera_height,
        nearest=focal * camera_height / (0.98 * height - horizon),
        farthest=0.9 * end if indoor else 0.45 * far,
    )


def _wall(
    rng: np.random.Generator,
    rows: Array,
    columns: Array,
    z: Array,
    focal: float,
    horizon: float,
    camera_height: float,
    end: float,
) -> Array:
    """A lit wall at ``end`` metres with a skirting board, [H, W, 3]."""
    foot = horizon + focal * camera_height / end
    metres = focal / end
    paint = colour(rng, (0.08, 0.4), (0.55, 0.88))
    width = columns.shape[1]
    lamp = rng.uniform(0.2, 0.8) * width
    glow = np.exp(-(((columns - lamp) / (0.6 * width)) ** 2) - ((rows - 0.3 * foot) / (1.1 * foot)) ** 2)
    texture = smooth_noise(rng, columns / metres + 0 * rows, rows / metres + 0 * columns, rng.uniform(0.15, 0.8)) - 0.5
    period = metres * rng.uniform(0.25, 0.7)
    stripes = np.sin(columns * np.float32(2 * np.pi / period)) * np.float32(rng.choice((0.0, 0.0, 0.05)))
    wall = paint * (0.74 + 0.34 * glow + 0.16 * texture + stripes)[..., None]
    board = np.clip(1 - np.abs(rows - (foot - 0.06 * metres)) / (0.06 * metres), 0, 1) > 0
    painted: Array = np.where(board[..., None], wall * 0.45 + 0.42, wall)
    return painted


def _sky(
    rng: np.random.Generator, rows: Array, columns: Array, horizon: float, far: float
) -> tuple[Array, Array, NDArray[np.bool_], Array]:
    """Sky with clouds and two ridges of hills: image [H, W, 3], haze colour [3], hills [H, W], their depth [H, W]."""
    height, width = rows.shape[0], columns.shape[1]
    top = colour(rng, (0.3, 0.6), (0.6, 0.9), (0.53, 0.63))
    low = colour(rng, (0.04, 0.3), (0.86, 0.97), (0.05, 0.15))
    blend = np.clip(rows / horizon, 0, 1)[..., None] ** 1.3
    sky = top * (1 - blend) + low * blend
    # A cloud layer at constant height recedes like a ceiling.
    recede = horizon / np.maximum(horizon * 1.15 - rows, 0.05 * horizon)
    clouds = smooth_noise(rng, (columns - width / 2) / height * recede, recede + 0 * columns, 0.25)
    cover = (np.clip((clouds - 0.5) * 2.2, 0, 1) * 0.6)[..., None] * (1 - blend * 0.6)
    image = sky * (1 - cover) + np.float32(0.97) * cover
    haze = low
    hills = np.zeros((height, width), bool)
    depth = np.full((height, width), far, np.float32)
    tint = colour(rng, (0.2, 0.45), (0.35, 0.55), (0.25, 0.7))
    for distance, lift, weight in ((0.95 * far, 0.3, 0.72), (0.7 * far, 0.16, 0.45)):
        wave = smooth_noise(rng, columns / width, np.zeros_like(columns), rng.uniform(0.35, 0.7))
        for _ in range(2):
            wave = np.convolve(np.pad(wave[0], 12, mode="edge"), np.full(25, 1 / 25, np.float32), "valid")[None]
        ridge = rows > horizon * (1 - lift * (0.25 + wave))
        shade = 0.9 + 0.2 * smooth_noise(rng, columns / height + 0 * rows, rows / height + 0 * columns, 1.1)
        slope = (tint * (1 - weight) + haze * weight) * shade[..., None]
        image = np.where(ridge[..., None], slope, image)
        depth = np.where(ridge, np.float32(distance), depth)
        hills |= ridge
    return image.astype(np.float32), haze, hills, depth
