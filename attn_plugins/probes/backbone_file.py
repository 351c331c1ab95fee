"""Where the backbone of a trained probe lies now: it may have been moved, but its bytes are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.digest import sha256_of

__all__ = ["find_backbone"]

_SUFFIXES = frozenset({".pth", ".pt", ".safetensors", ".bin", ".ckpt"})
# Files looked into, at most: a home folder may hold thousands.
_MOST = 200


def find_backbone(identity: Mapping[str, Any], near: Path) -> Path:
    """The file that a head was trained on.

    Where it lay then; else a file of the same bytes, searched for near the probe and in the working folder.

    Args:
        identity: what the head's checkpoint says of its backbone.
        near: the head's file.

    Raises:
        ValueError: it is nowhere there; its digest and the option that names it are told.
    """
    recorded = identity.get("checkpoint")
    sha256 = identity.get("sha256")
    if recorded and Path(recorded).exists() and (sha256 is None or sha256_of(Path(recorded)) == sha256):
        return Path(recorded)
    if sha256:
        size = identity.get("bytes")
        for path in _candidates(near, Path(str(recorded)).name):
            if (size is None or path.stat().st_size == size) and sha256_of(path) == sha256:
                return path
    raise ValueError(
        f"the backbone of {near} is not where it was ({recorded}), and no file near the probe or in {Path.cwd()} has "
        f"its SHA-256, {sha256}: name it with --checkpoint FILE (load(PROBE, checkpoint=FILE))"
    )


def _candidates(near: Path, name: str) -> Iterator[Path]:
    """Files that may hold weights: those of the same name first."""
    places = [near.parent, *list(near.absolute().parents)[1:4], Path.cwd(), Path.cwd() / "checkpoints"]
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            for path in sorted(place.iterdir()):
                if path.suffix in _SUFFIXES and path.is_file() and path.absolute() != near.absolute():
                    found[path.resolve()] = None
    yield from sorted(found, key=lambda path: path.name != name)[:_MOST]
