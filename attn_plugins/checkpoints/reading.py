"""Read checkpoint files without running anything that is in them."""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import pickle
import re
import zipfile
from typing import Any

import torch

from .errors import CheckpointError

__all__ = ["allowed_globals", "read"]


def allowed_globals() -> list[Any]:
    """What a checkpoint may hold beside tensors: settings, paths, and the numpy scalars that schedules leave
    behind.

    Constructing any of them runs no code of the file's choosing. DINOv1's `checkpoint.pth` needs all three:
    its `args` is a Namespace (with a Path in it under submitit), its learning rates are `numpy.float64`.
    """
    allowed: list[Any] = [argparse.Namespace]
    for path in (pathlib.PosixPath, pathlib.PurePosixPath):
        # Python 3.13 moved the classes to pathlib._local; files carry the name of the Python that wrote them.
        allowed += [(path, f"{module}.{path.__name__}") for module in ("pathlib", "pathlib._local")]
    if importlib.util.find_spec("numpy") is not None:
        import numpy as np

        kinds = ("float16", "float32", "float64", "int32", "int64", "bool")
        allowed += [np.dtype, *(type(np.dtype(kind)) for kind in kinds)]
        scalar = np.float64(0).__reduce__()[0]
        # numpy 2 renamed numpy.core; files from both sides of the change are read.
        allowed += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return allowed


def read(path: str | os.PathLike[str], *, mmap: bool = False) -> Any:
    """The contents of a `torch.save` file, on the CPU.

    Args:
        path: the file.
        mmap: leave tensors on disk until they are touched (fit for looking, not for keeping: the trainer may
            overwrite the file).

    Raises:
        CheckpointError: no such file; truncated or not a checkpoint; or it asks for something outside the
            allow-list, in which case nothing of it has been run.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder. A sharded (torch.distributed.checkpoint) save has to be consolidated first: "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, FILE)."
        )
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    known = torch.serialization.get_safe_globals()  # left alone: the context takes its own back at the end
    try:
        with torch.serialization.safe_globals([entry for entry in allowed_globals() if entry not in known]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unpickling_message(path, str(error))) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is truncated or not a torch checkpoint: {_first_line(error)}. "
            "Copy it again from where it was written."
        ) from error


def _unpickling_message(path: pathlib.Path, text: str) -> str:
    wanted = re.search(r"GLOBAL:? ([\w.]+)", text)
    if wanted is None:
        return (
            f"{path} ({path.stat().st_size} bytes) refused, nothing in it was run: it is truncated, not a "
            "torch checkpoint, or holds more than tensors and plain settings."
        )
    return (
        f"{path} refused, nothing in it was run: it asks for {wanted[1].rstrip('.')}, and only tensors and "
        "plain settings are read. If it is a whole pickled model (a Lightning or lightly-train .ckpt), export its "
        "weights first: lightly_train.export(..., format='torch_state_dict')."
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
