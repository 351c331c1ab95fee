"""The twenty object classes: an outline and a family of textures each, in object coordinates u, v in [-1, 1].

A class is told apart by what it is shaped like and how it is patterned. Its colour only tends to something: every
object's hue is drawn widely around ``ObjectClass.hue``, its second colour is any. u points right, v points down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

__all__ = ["CLASSES", "ObjectClass", "lowest", "outline", "pattern"]


class ObjectClass(NamedTuple):
    """One class of objects.

    Attributes:
        outline, pattern: what ``outline`` and ``pattern`` below call them.
        aspect: width divided by height.
        tilt: largest rotation, radians.
        hue: in [0, 1], where the first colour's hue is most often found.
    """

    outline: str
    pattern: str
    aspect: float
    tilt: float
    hue: float


# Index i is class id i + 1; id 0 is background, as in PASCAL VOC.
CLASSES: tuple[ObjectClass, ...] = (
    ObjectClass("disc", "stripes", 1.0, 3.2, 0.02),
    ObjectClass("gear", "rings", 1.0, 3.2, 0.64),
    ObjectClass("drop", "scales", 0.8, 0.3, 0.26),
    ObjectClass("triangle", "waves", 1.1, 0.1, 0.87),
    ObjectClass("capsule", "bands", 0.45, 0.2, 0.49),
    ObjectClass("square", "checks", 1.3, 0.05, 0.11),
    ObjectClass("disc", "speckle", 1.7, 0.1, 0.73),
    ObjectClass("star", "plain", 1.0, 0.4, 0.35),
    ObjectClass("cross", "stripes", 1.0, 0.3, 0.96),
    ObjectClass("cloud", "patches", 1.4, 0.15, 0.58),
    ObjectClass("hexagon", "bands", 1.5, 0.1, 0.2),
    ObjectClass("flower", "dots", 1.0, 3.2, 0.82),
    ObjectClass("leaf", "waves", 0.7, 0.6, 0.44),
    ObjectClass("ring", "stripes", 1.0, 3.2, 0.05),
    ObjectClass("capsule", "patches", 0.55, 0.1, 0.67),
    ObjectClass("heart", "plain", 1.05, 0.2, 0.29),
    ObjectClass("cloud", "speckle", 1.1, 0.3, 0.91),
    ObjectClass("square", "dots", 1.8, 0.05, 0.53),
    ObjectClass("burst", "rings", 1.0, 3.2, 0.14),
    ObjectClass("diamond", "checks", 0.8, 0.15, 0.76),
)


def _polygon(angle: Array, sides: int, turn: float = 0.0, sharpness: float = 14.0) -> Array:
    """Radius of a rounded regular polygon with a side's normal at ``turn``: a p-norm over the side normals."""
    normals = turn + 2 * np.pi * np.arange(sides, dtype=np.float32) / sides
    facing = np.maximum(np.cos(angle[..., None] - normals), 0)
    radius: Array = (facing**sharpness).sum(-1) ** (-1 / sharpness)
    return radius


_RADIUS: dict[str, Callable[[Array], Array]] = {
    "disc": lambda a: np.ones_like(a),
    "gear": lambda a: 0.9 + 0.1 * np.tanh(3 * np.cos(11 * a)),
    "drop": lambda a: 0.62 + 0.38 * np.maximum(-np.sin(a), 0) ** 5,
    "triangle": lambda a: 0.62 * _polygon(a, 3, np.pi / 2),
    "capsule": lambda a: 0.97 * (np.abs(np.cos(a)) ** 3.4 + np.abs(np.sin(a)) ** 3.4) ** (-1 / 3.4),
    "square": lambda a: 0.86 * _polygon(a, 4),
    "star": lambda a: 0.42 + 0.58 * np.abs(np.cos(2.5 * (a + np.pi / 2))) ** 1.7,
    "cross": lambda a: 0.46 + 0.5 * np.abs(np.cos(2 * a)) ** 3,
    "cloud": lambda a: 0.8 + 0.1 * np.abs(np.sin(3.5 * a)) + 0.1 * np.abs(np.cos(2 * a + 0.6)),
    "hexagon": lambda a: 0.9 * _polygon(a, 6, np.pi / 6),
    "flower": lambda a: 0.62 + 0.38 * np.abs(np.cos(3 * a)) ** 0.7,
    "leaf": lambda a: 0.55 + 0.45 * np.abs(np.sin(a)) ** 4,
    "heart": lambda a: 0.9 - 0.42 * np.exp(-((a + np.pi / 2) ** 2) / 0.18) + 0.1 * np.maximum(np.sin(a), 0) ** 6,
    "burst": lambda a: 0.8 + 0.2 * np.cos(13 * a),
    "diamond": lambda a: 0.72 * _polygon(a, 4, np.pi / 4),
}

_RING_CENTRE, _RING_HALF_WIDTH = 0.68, 0.32


def outline(name: str, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """How far every point lies from the middle of the shape.

    Args:
        name: an outline named in ``CLASSES``.
        u, v: [h, w] object coordinates.

    Returns:
        t: [h, w], 0 on the spine, 1 on the outline, more outside.
        nu, nv: [h, w], the unit direction from the spine outwards, for shading.
    """
    distance = np.hypot(u, v)
    safe = np.maximum(distance, 1e-6)
    nu, nv = u / safe, v / safe
    if name == "ring":
        offset = distance - _RING_CENTRE
        side = np.sign(offset)
        return np.abs(offset) / _RING_HALF_WIDTH, nu * side, nv * side
    return distance / _RADIUS[name](np.arctan2(v, u)), nu, nv


def lowest(name: str, turn: float) -> float:
    """Largest v of a shape turned by ``turn`` radians: what it stands on."""
    if name == "ring":
        return 1.0
    angle = np.linspace(-np.pi, np.pi, 128, dtype=np.float32)
    return float((_RADIUS[name](angle) * np.sin(angle + np.float32(turn))).max())


def pattern(name: str, u: Array, v: Array, noise: Array, frequency: float) -> Array:
    """Share of the second colour at every point, [h, w] in [0, 1].

    Args:
        name: a pattern named in ``CLASSES``.
        u, v: [h, w] object coordinates.
        noise: [h, w] smooth noise in [0, 1], already sampled in object coordinates.
        frequency: cycles over half the object.
    """
    w = np.float32(np.pi * frequency)

    def edge(x: Array) -> Array:
        inside: Array = np.clip(0.5 + 2.5 * x, 0, 1)
        return inside

    if name == "stripes":
        return edge(np.sin(w * (u + 0.35 * v) * 1.3))
    if name == "bands":
        return edge(np.sin(w * v * 1.4))
    if name == "rings":
        return edge(np.sin(w * np.hypot(u, v) * 1.8))
    if name == "waves":
        return edge(np.sin(w * (v * 1.5 + 0.18 * np.sin(6 * u))))
    if name == "checks":
        return edge(1.6 * np.sin(w * u) * np.sin(w * v))
    if name == "dots":
        return edge(np.cos(w * u * 1.3) * np.cos(w * v * 1.3) * 2 - 0.9)
    if name == "scales":
        row = np.floor(v * frequency * 1.6)
        across = (u * frequency + 0.5 * (row % 2)) % 1 - 0.5
        down = (v * frequency * 1.6) % 1
        return edge(4 * (np.hypot(across, 0.7 * (1 - down)) - 0.42))
    if name == "patches":
        return edge(9 * (noise - 0.54))
    if name == "speckle":
        return edge(7 * ((noise * 9) % 1 - 0.62))
    return 0.35 * noise  # "plain"
