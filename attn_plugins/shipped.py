"""Folders that stand beside the package in the repository and inside it where it is installed."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped"]

PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str, holding: str) -> Path:
    """Where ``folder`` (``patches``, ``mmseg_configs``) is.

    Args:
        folder: its name in the repository.
        holding: something in it, by which the right one is known.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    places = (PACKAGE / f"_{folder}", PACKAGE.parent / folder)
    for place in places:
        if (place / holding).exists():
            return place
    raise FileNotFoundError(f"{folder} is missing: looked at {' and '.join(map(str, places))}; reinstall attn_plugins")
