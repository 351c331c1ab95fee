"""``FILE=SPEC``: a checkpoint and what it is to be shown under."""

from __future__ import annotations

import os
from pathlib import Path

from ..spec import parse

__all__ = ["reference"]


def reference(text: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """(path, spec) of ``FILE=SPEC``, the spec None for a plain ``FILE``.

    A path that exists is a path, whatever is in it. A spec has ``=`` itself (``FILE=registers:num=4``), and so may a
    path: of the places to part them at, the first is taken that leaves a path which exists, or the first of all.

    Raises:
        ValueError: what follows the path is no spec.
    """
    whole = os.fspath(text)
    parts = whole.split("=")
    if len(parts) == 1 or Path(whole).exists():
        return Path(whole), None
    splits = [("=".join(parts[:n]), "=".join(parts[n:])) for n in range(1, len(parts))]
    path, spec = next(((path, spec) for path, spec in splits if Path(path).exists()), splits[0])
    try:
        return Path(path), str(parse(spec))
    except ValueError as error:
        raise ValueError(f"{whole!r} is no file, and as FILE=SPEC it has a bad spec: {error}") from error
