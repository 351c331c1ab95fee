"""One number for what a frozen backbone computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import sha256

__all__ = ["backbone_digest", "sha256_of", "tensors_digest"]


def backbone_digest(
    model: nn.Module, arguments: Mapping[str, Any], spec: str, layers: Mapping[str, str | None] | None = None
) -> str:
    """SHA-256, in hexadecimal, of everything that a backbone's features depend on.

    Args:
        model: with its weights loaded. Its parameters and buffers count by name, dtype, shape and bytes, wherever
            they came from: a file, a transformers folder, a seed.
        arguments: how it was built: the name of its architecture and the arguments of its constructor.
        spec: the plugin spec.
        layers: {attention layer: normalizer} where layers differ.

    Two backbones with the same digest compute the same features; the same weights in another file, or after a move
    of that file, have the same.
    """
    digest = tensors_digest({**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())})
    said = {"arguments": _plain(arguments), "spec": spec, "layers": _plain(layers)}
    digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> hashlib._Hash:
    """SHA-256 over names, dtypes, shapes and bytes of tensors of any dtype, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest


def sha256_of(path: Path) -> str | None:
    """Of the file, in hexadecimal; None of a folder."""
    return None if path.is_dir() else sha256(path)


def _plain(value: Any) -> Any:
    """What JSON can hold and what is the same in every process: classes and functions go by their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_plain(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)
