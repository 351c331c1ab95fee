"""JSON files beside weights, read as what they are: plain settings of which nothing is believed unseen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .errors import CheckpointError

__all__ = ["WEIGHTS", "config_beside", "read_json"]

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Weights in a folder of timm's hub, of transformers or of accelerate, in the order in which they are preferred."""


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: it is no JSON, or no object.
    """
    try:
        contents = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} holds {type(contents).__name__}, not an object of settings")
    return contents


def config_beside(path: str | os.PathLike[str]) -> dict[str, Any]:
    """``config.json`` of a folder that timm or transformers wrote, or of the weights in it; {} of any other file."""
    path = Path(path)
    folder = path.parent if path.name in WEIGHTS else path
    config = folder / "config.json"
    return read_json(config) if config.is_file() else {}
