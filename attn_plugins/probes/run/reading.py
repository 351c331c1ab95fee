"""What mmengine loads (heads, runs to resume), read without running anything that is in it."""

from __future__ import annotations

import hashlib
import pickle
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ...checkpoints import CheckpointError, read
from ...torch_names import safe_globals

__all__ = ["install_safe_loading"]

_STATISTICS = ("min", "max", "current", "mean")


def install_safe_loading() -> None:
    """Put ``attn_plugins.checkpoints.read`` in the place of every loader that mmengine has registered.

    mmengine's own unpickles a file in full when the safe way refuses it, and its safe way admits ``getattr``. This
    holds for the whole process: local files and http(s) addresses are read by the allow-list, other schemes refused.
    """
    others = [scheme for scheme in CheckpointLoader._schemes if scheme not in ("", "http://", "https://")]
    CheckpointLoader.register_scheme("", load_from_local, force=True)
    CheckpointLoader.register_scheme(["http://", "https://"], load_from_http, force=True)
    CheckpointLoader.register_scheme(others, load_from_elsewhere, force=True)


def run_state_is_read() -> AbstractContextManager[None]:
    """Context in which ``attn_plugins.checkpoints`` reads what mmengine saves of a run, too."""
    return safe_globals(_run_state())


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """The contents of a local checkpoint, on the CPU; ``map_location`` is accepted for mmengine's sake.

    Raises:
        CheckpointError: no such file, damaged, or it asks for something outside the allow-list, which is named.
    """
    with run_state_is_read():
        return read(Path(filename).expanduser())


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """The contents of a checkpoint behind an address, kept in torch's hub folder; see ``load_from_local``."""
    name = f"{hashlib.sha256(filename.encode()).hexdigest()[:8]}-{Path(urlsplit(filename).path).name}"
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(filename, str(file), progress=False)
    return load_from_local(str(file))


def load_from_elsewhere(filename: str, map_location: Any = None) -> Any:
    """Nothing.

    Raises:
        CheckpointError: always; mmengine's loaders of these schemes run what is in a file.
    """
    raise CheckpointError(
        f"{filename} is not read while attn_plugins.probes is imported: mmengine's loader for it would run what is "
        "in the file. Download it, and give the local file."
    )


def _run_state() -> list[Any]:
    """What a run that goes on needs beside weights: the log's histories, and the numpy arrays that they are."""
    reconstruct = np.ndarray(0).__reduce__()[0]
    wanted: list[Any] = [HistoryBuffer, np.ndarray, (_statistic, "builtins.getattr")]
    # numpy 2 renamed numpy.core; files from both sides of the change are read.
    wanted += [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    return wanted


def _statistic(owner: Any, name: str) -> Any:
    """What a file gets for ``getattr``: a HistoryBuffer's pickle names its four statistics so, and nothing else is.

    With the true ``getattr``, a file reaches every function of the interpreter from any class that it may name.
    """
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(f"GLOBAL builtins.getattr, for {name!r} of {owner!r}")
    return getattr(HistoryBuffer, name)
