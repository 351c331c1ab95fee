"""Rendered scenes with exact ground truth: textured objects standing on a floor, indoors or under a sky.

Every scene comes from ``np.random.default_rng([seed, index])`` alone, so scene 7 is the same picture whether ten or ten
thousand are rendered, in any order and in any process.

    >>> scene = render(seed=0, index=7, size=(224, 224))
    >>> scene.image.shape, scene.boxes[0]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attn_plugins.data import backdrop
from attn_plugins.data.shapes import CLASSES, lowest, outline, pattern

Array = NDArray[np.float32]

__all__ = ["NUM_CLASSES", "Box", "Scene", "render", "scenes"]

NUM_CLASSES = len(CLASSES)

# Wide against the 1/20 between neighbouring classes: colour alone tells a class from a few others at best.
_HUE_SPREAD = 0.1


class Box(NamedTuple):
    """The visible part of one object: ``mask[ymin:ymax, xmin:xmax]``, 0-based pixels, maxima exclusive."""

    label: int
    xmin: int
    ymin: int
    xmax: int
    ymax: int


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture and everything that is known about it.

    Attributes:
        image: [H, W, 3] uint8, RGB.
        mask: [H, W] uint8, class id 1..20 where an object is seen, 0 elsewhere.
        instances: [H, W] uint8, i + 1 where the object of ``boxes[i]`` is seen, 0 elsewhere.
        stuff: [H, W] uint8, ``backdrop.FLOOR | SKY | HILLS | WALL`` where no object is, 0 elsewhere.
        boxes: one for each visible object, nearest last.
        depth: [H, W] float32, metres along the optical axis, in (0, far]; the sky is at far.
        label: the scene's class, that of its main object: 1..20.
        focal: focal length in pixels.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    stuff: NDArray[np.uint8]
    boxes: tuple[Box, ...]
    depth: Array
    label: int
    focal: float


class _Placed(NamedTuple):
    label: int
    distance: float  # metres
    x: float  # centre column
    base: float  # row where it touches the floor
    height: float  # pixels
    width: float  # pixels


def scenes(
    seed: int,
    count: int,
    size: tuple[int, int] = (224, 224),
    *,
    start: int = 0,
    indoor: bool | None = None,
    far: float = 80.0,
) -> Iterator[Scene]:
    """Scenes ``start`` to ``start + count - 1`` of a seed; the arguments are those of ``render``."""
    for index in range(start, start + count):
        yield render(seed, index, size, indoor=indoor, far=far)


def render(
    seed: int,
    index: int,
    size: tuple[int, int] = (224, 224),
    *,
    label: int | None = None,
    indoor: bool | None = None,
    far: float = 80.0,
) -> Scene:
    """Render one scene.

    Args:
        seed, index: non-negative; together they determine the scene.
        size: (H, W) in pixels, each at least 32.
        label: class 1..20 of the main object; drawn from the scene's generator when None.
        indoor: a room, or open ground; drawn when None. A room is never deeper than 10 m.
        far: metres, the largest depth.

    Raises:
        ValueError: a size, label or far that cannot be rendered.
    """
    height, width = size
    if min(size) < 32:
        raise ValueError(f"size={size}: height and width must be at least 32 pixels")
    if label is not None and not 1 <= label <= NUM_CLASSES:
        raise ValueError(f"label={label}: classes are 1 to {NUM_CLASSES}")
    if far <= 5:
        raise ValueError(f"far={far}: the scene must be more than 5 m deep")
    rng = np.random.default_rng([seed, index])
    drawn_indoor, drawn_label = bool(rng.random() < 0.4), int(rng.integers(1, NUM_CLASSES + 1))
    indoor = drawn_indoor if indoor is None else indoor
    label = drawn_label if label is None else label

    ground = backdrop.build(rng, height, width, indoor, min(far, 10.0) if indoor else far)
    canvas, depth = ground.image, ground.depth
    instances = np.zeros((height, width), np.uint8)
    placed = _place(rng, ground, height, width, label)
    sun = rng.uniform(-0.7, 0.7)
    for order, thing in enumerate(placed):
        _draw_shadow(canvas, thing, sun)
        _draw_object(rng, canvas, depth, instances, thing, order + 1, sun, ground)
    return _finish(rng, canvas, depth, instances, ground, placed, label)


def _place(rng: np.random.Generator, ground: backdrop.Backdrop, height: int, width: int, label: int) -> list[_Placed]:
    """Choose objects, farthest first; the main one is large, near and never hidden."""
    short = min(height, width)

    def place(label: int, distance: float, x: float, tall: float) -> _Placed:
        aspect = CLASSES[label - 1].aspect
        tall = tall / max(1.0, aspect**0.7)
        return _Placed(label, distance, x, ground.floor_row(distance), tall, tall * aspect)

    nearest, farthest = ground.nearest, ground.farthest
    main = place(
        label,
        nearest * rng.uniform(1.0, 1.35),
        width / 2 + rng.uniform(-0.25, 0.25) * max(width - 0.5 * short, 0.5 * width),
        short * rng.uniform(0.42, 0.68),
    )
    placed = [main]
    wanted = 1 + int(rng.integers(0, 4)) + int(2 * (width / height - 1))
    for _ in range(4 * wanted):
        if len(placed) >= wanted:
            break
        # Uniform in 1/distance is uniform over the rows of the floor; a shallow scene has none behind its main object.
        distance = 1 / rng.uniform(1 / farthest, 1 / min(1.15 * nearest, farthest))
        metres = rng.uniform(0.45, 0.9) * 0.55 * short / ground.focal * nearest
        tall = max(ground.focal * metres / distance * 1.6, 0.1 * short)
        thing = place(int(rng.integers(1, NUM_CLASSES + 1)), distance, rng.uniform(0.05, 0.95) * width, tall)
        if all(_overlap(thing, other) < 0.35 for other in placed):
            placed.append(thing)
    return sorted(placed, key=lambda thing: -thing.distance)


def _overlap(a: _Placed, b: _Placed) -> float:
    """Intersection of two objects' rectangles over the smaller one's area."""
    across = min(a.x + a.width / 2, b.x + b.width / 2) - max(a.x - a.width / 2, b.x - b.width / 2)
    down = min(a.base, b.base) - max(a.base - a.height, b.base - b.height)
    return max(across, 0) * max(down, 0) / min(a.width * a.height, b.width * b.height)


def _window(
    shape: tuple[int, ...], x: float, y: float, half_width: float, half_height: float
) -> tuple[tuple[slice, slice], Array, Array]:
    """The part of the picture around (x, y), and its pixels' offsets from there, in half sizes: [1, w], [h, 1]."""
    left, right = max(int(x - half_width), 0), min(int(x + half_width) + 2, shape[1])
    top, bottom = max(int(y - half_height), 0), min(int(y + half_height) + 2, shape[0])
    u = (np.arange(left, max(right, left), dtype=np.float32)[None] - np.float32(x)) / np.float32(half_width)
    v = (np.arange(top, max(bottom, top), dtype=np.float32)[:, None] - np.float32(y)) / np.float32(half_height)
    return (slice(top, max(bottom, top)), slice(left, max(right, left))), u, v


def _draw_shadow(canvas: Array, thing: _Placed, sun: float) -> None:
    """Darken the floor: a long soft ellipse away from the light, a short dark one at the contact."""
    squash = max(0.09 * thing.height, 1.5)
    for lean, wide, flat, strength in ((-0.35 * sun, 0.85, 1.6, 0.5), (0.0, 0.45, 0.7, 0.5)):
        x = thing.x + lean * thing.width
        region, u, v = _window(canvas.shape, x, thing.base - 0.3 * squash, wide * thing.width, flat * squash)
        canvas[region] *= (1 - strength * np.clip(1 - u * u - v * v, 0, 1) ** 1.2)[..., None]


def _draw_object(
    rng: np.random.Generator,
    canvas: Array,
    depth: Array,
    instances: NDArray[np.uint8],
    thing: _Placed,
    number: int,
    sun: float,
    ground: backdrop.Backdrop,
) -> None:
    """Paint one object over what is there, with its depth and instance number."""
    kind = CLASSES[thing.label - 1]
    half_width, half_height = thing.width / 2, thing.height / 2
    turn = rng.uniform(-kind.tilt, kind.tilt)
    middle = thing.base - 0.97 * half_height * lowest(kind.outline, turn)
    reach = 1.12 + 0.35 * (kind.tilt < 1)
    region, u, v = _window(canvas.shape, thing.x, middle, half_width * reach, half_height * reach)
    u, v = np.broadcast_arrays(u * np.float32(reach), v * np.float32(reach))
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = cos * u + sin * v, cos * v - sin * u

    t, nu, nv = outline(kind.outline, u, v)
    # t rises by about 1 over the half size, so this is coverage over one pixel.
    alpha = np.clip((1 - t) * np.float32(min(half_width, half_height)) + 0.5, 0, 1)
    # A cushion: flat in the middle, turning away towards the rim.
    lean = np.minimum(t, 1) ** 2.2 * 0.96
    facing = np.sqrt(1 - lean * lean)
    noise = backdrop.smooth_noise(rng, u, v, rng.uniform(0.25, 0.4))
    hue = rng.normal(kind.hue, _HUE_SPREAD) % 1.0
    first = backdrop.colour(rng, (0.45, 0.85), (0.6, 0.95), (hue, hue))
    second = backdrop.colour(rng, (0.1, 0.75), (0.25, 1.0))
    if np.abs(first - second).sum() < 0.6:
        second = np.where(first.mean() > 0.5, first * 0.35, 1 - (1 - first) * 0.3).astype(np.float32)
    share = pattern(kind.pattern, u, v, noise, rng.uniform(2.2, 3.6))[..., None]
    albedo = (first * (1 - share) + second * share) * (0.88 + 0.24 * noise[..., None])

    # Normal back in picture coordinates; light from above, to the side of `sun`, and from the viewer.
    nx, ny = (cos * nu - sin * nv) * lean, (sin * nu + cos * nv) * lean
    light = np.asarray((sun, -0.62, 0.62), np.float32) / np.float32(np.sqrt(sun * sun + 2 * 0.62**2))
    lambert = np.clip(nx * light[0] + ny * light[1] + facing * light[2], 0, 1)
    # Half vector between the light and the viewer along +z.
    half = (light + np.asarray((0, 0, 1), np.float32)) / np.float32(np.sqrt(2 + 2 * light[2]))
    gloss = np.clip(nx * half[0] + ny * half[1] + facing * half[2], 0, 1) ** 36 * np.float32(rng.uniform(0.08, 0.4))
    colour = albedo * (0.36 + 0.76 * lambert)[..., None] + gloss[..., None]
    fade = np.float32(1 - np.exp(-thing.distance * ground.haze_per_metre))
    colour = colour * (1 - fade) + ground.haze * fade

    canvas[region] += (colour - canvas[region]) * alpha[..., None]
    solid = alpha > 0.5
    bulge = 0.3 * thing.width / ground.focal * thing.distance
    surface = np.maximum(thing.distance - np.float32(bulge) * facing, 0.5)
    depth[region][solid] = surface[solid]
    instances[region][solid] = number


def _finish(
    rng: np.random.Generator,
    canvas: Array,
    depth: Array,
    instances: NDArray[np.uint8],
    ground: backdrop.Backdrop,
    placed: list[_Placed],
    label: int,
) -> Scene:
    """Vignette and grain; drop what ended up hidden; renumber; boxes from what is seen."""
    height, width = instances.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    grain = (rng.random((height, width), np.float32) - np.float32(0.5)) * np.float32(0.035)
    canvas = (canvas * (1.02 - 0.09 * (x * x + y * y))[..., None] + grain[..., None]) * 255
    image = np.clip(canvas, 0, 255).astype(np.uint8)

    numbers = np.zeros(len(placed) + 1, np.uint8)
    labels = np.zeros(len(placed) + 1, np.uint8)
    boxes: list[Box] = []
    for number, thing in enumerate(placed, 1):
        seen = instances == number
        columns, rows = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
        if columns.size == 0:
            continue
        numbers[number] = len(boxes) + 1
        labels[number] = thing.label
        boxes.append(Box(thing.label, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    return Scene(
        image=image,
        mask=labels[instances],
        instances=numbers[instances],
        stuff=np.where(instances > 0, np.uint8(0), ground.stuff),
        boxes=tuple(boxes),
        depth=depth,
        label=label,
        focal=ground.focal,
    )
