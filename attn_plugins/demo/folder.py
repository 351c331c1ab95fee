"""The folder of a run: its settings are written first, so that another run never mixes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import read_json, write_text

__all__ = ["claim"]


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Make ``out`` the folder of a run with these settings, or find that it is.

    Raises:
        ValueError: it holds a run with other settings, or something else.
    """
    record, wanted = out / "settings.json", json.loads(json.dumps(settings, default=str))
    if record.exists():
        found = read_json(record)
        if found != wanted:
            raise ValueError(f"{out} holds a run with {found}, not {wanted}: choose another --out, or remove it")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no demo run: choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps(wanted, indent=1) + "\n")
