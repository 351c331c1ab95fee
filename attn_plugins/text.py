"""Aligned tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["columns"]


def columns(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """One line for each row, its cells aligned and two spaces apart.

    Args:
        rows: of equal length, the heading among them.
        numbers: align all columns but the first to the right.

    Raises:
        ValueError: rows of different lengths.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = (
            cell.rjust(width) if numbers and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return lines
