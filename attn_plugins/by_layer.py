"""What a spec says of single layers: ``@6-11`` behind a name, and values such as ``1.1..1.5``, one for each layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Ramp", "format_layers", "read_layers"]

_MOST = 10_000
"""Layers that an index may count: more is a slip of the finger, and would fill the memory."""


@dataclass(frozen=True)
class Ramp:
    """``first..last``: a number that changes evenly from the first layer that it is given to, to the last."""

    first: float
    last: float

    @classmethod
    def read(cls, text: str) -> Ramp | float | None:
        """The ramp that ``text`` says; a plain number where both ends are the same; None of any other text."""
        first, dots, last = text.partition("..")
        try:
            ends = float(first), float(last)
        except ValueError:
            return None
        if not dots or not all(math.isfinite(end) for end in ends):
            return None
        return cls(*ends) if ends[0] != ends[1] else ends[0]

    def at(self, index: int, count: int) -> float:
        """The value for layer ``index`` of ``count``, to six decimals."""
        share = index / (count - 1) if count > 1 else 0.0
        return round(self.first + (self.last - self.first) * share, 6)

    def __str__(self) -> str:
        return f"{self.first}..{self.last}"


def read_layers(text: str, spec: str) -> tuple[int, ...]:
    """The indices that ``6-11``, ``3`` or ``0-2/9-11`` name, in order.

    Raises:
        ValueError: it names none; ``spec`` is named in the message.
    """
    found: set[int] = set()
    for part in text.split("/"):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        ends = [first, last if dash else first]
        if not all(end.isascii() and end.isdigit() for end in ends):
            raise _no_layers(part, spec)
        low, high = (int(end) for end in ends)
        if high < low or high >= _MOST:
            raise _no_layers(part, spec)
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def _no_layers(part: str, spec: str) -> ValueError:
    return ValueError(
        f"spec {spec!r}: {part!r} names no layers; write indices as attn_plugins.describe counts them, from 0: "
        "name@3, name@6-11 (11 included) or name@0-2/9-11"
    )


def format_layers(layers: Iterable[int]) -> str:
    """The shortest text from which ``read_layers`` reads these indices, which are sorted."""
    indices = list(layers)
    starts = [indices[0], *(b for a, b in pairwise(indices) if b != a + 1)]
    ends = [*(a for a, b in pairwise(indices) if b != a + 1), indices[-1]]
    return "/".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
