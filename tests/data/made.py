"""What the tests of data sets are told of those that were written for them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["Made"]


class Made(NamedTuple):
    """What was written with which arguments; `roots` maps a data set's name to its data root."""

    roots: dict[str, Path]
    size: tuple[int, int]
    seed: int
    num_train: int
    num_val: int
