"""Read checkpoint files and folders without running anything that is in them."""

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

from .. import torch_names
from .errors import CheckpointError
from .plain import WEIGHTS, read_json

__all__ = ["allowed_globals", "read", "refusal", "safe_globals"]


def allowed_globals() -> list[Any]:
    """What a checkpoint may hold beside tensors: settings, paths, and the numpy scalars that schedules leave.

    Constructing any of them runs no code of the file's choosing. DINOv1's ``checkpoint.pth`` needs all three:
    its ``args`` is a Namespace (with a Path in it under submitit), its learning rates are ``numpy.float64``.
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


def safe_globals() -> Any:
    """A context in which ``torch.load(weights_only=True)`` takes ``allowed_globals`` as well."""
    return torch_names.safe_globals(allowed_globals())


def read(path: str | os.PathLike[str], *, mmap: bool = False) -> Any:
    """The contents of a checkpoint, on the CPU.

    Read are files of ``torch.save``, safetensors (one file, or the index of several), and folders: of
    torch.distributed.checkpoint, of timm's and transformers' ``save_pretrained``, and of accelerate.

    Args:
        path: the file or folder.
        mmap: leave tensors on disk until they are touched (fit for looking, not for keeping: the trainer may
            overwrite the file).

    Raises:
        CheckpointError: no such file; truncated or not a checkpoint; or it asks for something outside the
            allow-list, in which case nothing of it has been run.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _read_folder(path, mmap)
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    if path.name == ".metadata":
        return _read_folder(path.parent, mmap)
    if path.suffix == ".json":
        return _read_shards(path, mmap)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path, mmap)


def _read_folder(path: pathlib.Path, mmap: bool) -> Any:
    if (path / ".metadata").is_file():
        from .distributed import read_distributed

        return read_distributed(path)
    found = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if found is not None:
        return read(found, mmap=mmap)
    inside = sorted(folder.parent for folder in path.glob("*/.metadata"))
    models = [folder for folder in inside if "optim" not in folder.name]
    if len(models) == 1:  # accelerate with FSDP: FOLDER/pytorch_model_fsdp_0 beside optimizer_0
        return _read_folder(models[0], mmap)
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
    raise CheckpointError(
        f"{path} is a folder without weights that are known here ({', '.join(WEIGHTS)}, or the .metadata of "
        f"torch.distributed.checkpoint); it holds: {names or 'nothing'}. Name the file."
    )


def _read_shards(index: pathlib.Path, mmap: bool) -> dict[str, Any]:
    """The tensors of ``*.index.json``, which says in which file beside it each of them is."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index} is no index of weights: it has no weight_map of file names")
    state: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        if pathlib.PurePath(name).name != name or name.endswith(".json"):
            raise CheckpointError(f"{index} names {name!r}, which is no file of weights beside it")
        state |= read(index.with_name(name), mmap=mmap)
    absent = sorted(places.keys() - state.keys())
    if absent:
        raise CheckpointError(f"{index} lists tensors that its files lack: {absent[:5]} ({len(absent)} in all)")
    return state


def _read_safetensors(path: pathlib.Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"{path} needs safetensors to be read: pip install safetensors") from error
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # whatever a damaged file makes of the reader: nothing of it is used
        raise _damaged(path, "safetensors file", error) from error


def _read_torch(path: pathlib.Path, mmap: bool) -> Any:
    utf_8 = str(path).isprintable()  # torch maps no file whose name holds other bytes
    try:
        with safe_globals():
            mapped = mmap and utf_8 and zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(refusal(f"{path} ({path.stat().st_size} bytes)", str(error))) from error
    except Exception as error:  # whatever a damaged file makes of the reader: nothing of it is used
        raise _damaged(path, "torch checkpoint", error) from error


def _damaged(path: pathlib.Path, kind: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is truncated or not a {kind}: {_first_line(error)}. "
        "Copy it again from where it was written."
    )


def refusal(what: str, text: str) -> str:
    """The message for something that torch's safe unpickler refused with ``text``."""
    wanted = re.search(r"GLOBAL:? ([\w.]+)", text)
    if wanted is None:
        return (
            f"{what} refused, nothing in it was run: it is truncated, not a "
            "torch checkpoint, or holds more than tensors and plain settings."
        )
    return (
        f"{what} refused, nothing in it was run: it asks for {wanted[1].rstrip('.')}, and only tensors and "
        "plain settings are read. In the program that wrote it, save its state dict alone and use that file; for a "
        "lightly-train .ckpt: lightly_train.export(..., format='torch_state_dict')."
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
