"""Tensors on disk, by the digest of all that they were computed from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..checkpoints.digest import tensors_digest
from ..files import written

__all__ = ["FeatureStore", "key_of"]

# Raise when the same key would stand for other values: older files are then never found.
_VERSION = 2


def key_of(**what: Any) -> str:
    """SHA-256, in hexadecimal, of everything that decides an entry: the same on every machine.

    Args:
        what: digests, numbers, texts, and lists and mappings of them; no path and no time of a file.
    """
    return hashlib.sha256(json.dumps({"version": _VERSION, **what}, sort_keys=True).encode()).hexdigest()


class FeatureStore:
    """A folder of tensors. Each entry is one file that is written whole or not at all, and read by mapping it.

    Several processes and machines may share it. Nothing in a file is run. It only grows: delete the folder at will.

    Args:
        folder: where; it is made when the first entry is written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """The file of an entry, there or not."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """An entry's tensors, mapped from the disk; None where there is none, or a damaged one."""
        found = self._opened(key)
        return None if found is None else found[0]

    def intact(self, key: str) -> bool:
        """Whether an entry is there and has every byte that was written."""
        found = self._opened(key)
        return found is not None and found[1].get("sha256") == tensors_digest(found[0]).hexdigest()

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry; one that is there is replaced.

        Raises:
            OSError: the folder cannot be written.
        """
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with written(path) as partial:
            # save_file would keep the file from other users.
            partial.write_bytes(save(plain, metadata={"key": key, "sha256": tensors_digest(plain).hexdigest()}))

    def _opened(self, key: str) -> tuple[dict[str, Tensor], Mapping[str, str]] | None:
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                said, names = file.metadata() or {}, file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, ValueError):  # cut off, empty, another format: computed again
            return None
        return (tensors, said) if said.get("key") == key else None
