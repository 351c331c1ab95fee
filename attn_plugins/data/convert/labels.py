"""What converters of label masks share: pictures below a folder, their partners, ids exchanged by a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attn_plugins.data.convert.plan import as_png
from attn_plugins.data.images import ImageError, opened

__all__ = ["exchanged", "present", "require", "stored"]


def present(folder: Path, pattern: str) -> list[Path]:
    """Sorted files below ``folder``; not ``._NAME``, which macOS leaves beside ``NAME``."""
    return [path for path in sorted(folder.glob(pattern)) if not path.name.startswith("._")]


def require(paths: Iterable[Path], what: str) -> None:
    """Refuse a source some of whose files are missing.

    Raises:
        ValueError: how many, and the first.
    """
    paths = list(paths)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(paths)} {what} do not exist, first {missing[0]}: unpack the archive again"
        )


def stored(path: Path) -> NDArray[np.uint8]:
    """Values of a PNG of 8 bits as they are in the file: [H, W], or [H, W, 3] of an RGB picture.

    Raises:
        ValueError: it is damaged, or of another kind.
    """
    try:
        picture = opened(path, str(path))
    except ImageError as error:
        raise ValueError(f"{error}; unpack it again, the same command goes on") from error
    if picture.mode not in ("L", "P", "RGB"):
        raise ValueError(f"{path} is a {picture.mode} picture, where 8 bits a value are expected: unpack it again")
    return np.asarray(picture)


def exchanged(path: Path, table: NDArray[np.int16], told: str) -> bytes:
    """A mask [H, W] with each value v replaced by ``table``[v], as a grey PNG.

    Args:
        path: the mask.
        table: [256], -1 for values that a mask of this kind cannot have.
        told: what the values are, for the message.

    Raises:
        ValueError: the mask is damaged, in colours, or has such a value.
    """
    values = stored(path)
    if values.ndim != 2:
        raise ValueError(f"{path} is in colours, where {told} are expected: unpack the archive again")
    exchanged_values = table[values]
    if exchanged_values.min() < 0:
        wrong = sorted({int(value) for value in np.unique(values) if table[value] < 0})
        raise ValueError(f"{path} holds {wrong[:8]}, which are no {told}: unpack the archive again")
    return as_png(exchanged_values.astype(np.uint8))
