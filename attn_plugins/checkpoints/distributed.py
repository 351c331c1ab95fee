"""Folders of torch.distributed.checkpoint, read in one process; their pickles run nothing of the folder's choosing."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from ..patching.record import METADATA_KEY
from .errors import CheckpointError
from .reading import refusal, safe_globals

__all__ = ["read_distributed"]

_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "MetadataIndex",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "pathlib._local": ("PosixPath", "PurePosixPath"),
}


def read_distributed(folder: Path) -> dict[str, Any]:
    """The state dict of a folder that ``torch.distributed.checkpoint.save`` wrote, whole and on the CPU.

    Tensors of every process are put together. Of what is no tensor only the plugin spec and ``args`` are read.

    Raises:
        CheckpointError: the folder is damaged, or its metadata asks for something outside the allow-list, in which
            case nothing of it has been run.
    """
    reader = _Reader(folder)
    try:
        metadata = reader.read_metadata()
        flat = {name: value for name, entry in metadata.state_dict_metadata.items() if (value := _empty(name, entry))}
        wanted = {name: value[0] for name, value in flat.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
            load(wanted, storage_reader=reader, planner=_Planner(), no_dist=True)
        return _nested(wanted, metadata.planner_data or {})
    except CheckpointError:
        raise
    except (Exception, CheckpointException) as error:  # whatever a damaged folder makes of torch's reader
        refused = [cause for cause, _ in getattr(error, "failures", {}).values() if isinstance(cause, CheckpointError)]
        if refused:
            raise refused[0] from error
        raise CheckpointError(
            f"{folder} is no torch.distributed.checkpoint that can be read ({type(error).__name__}: {error}). "
            "If you trust it, put it together with torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
            "(FOLDER, FILE) and use FILE."
        ) from error


class _Reader(FileSystemReader):
    """torch's, but that its metadata is unpickled by an allow-list, and files outside the folder are not opened."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        file = Path(self.path) / ".metadata"
        with file.open("rb") as stream:
            metadata: Metadata = _Unpickler(stream, file).load()
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{file} holds {type(metadata).__name__}, no metadata of a checkpoint")
        for place in metadata.storage_data.values():
            if PurePath(place.relative_path).name != place.relative_path:
                raise CheckpointError(f"{file} names {place.relative_path!r}, which is no file beside it")
        return metadata


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any, file: Path) -> None:
        super().__init__(stream)
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        dtype = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(dtype, torch.dtype) or name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(f"{self.file} refused, nothing in it was run: it asks for {module}.{name}")


class _Planner(DefaultLoadPlanner):
    """torch's, but that what is no tensor is unpickled by the allow-list of all checkpoints."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            with safe_globals():
                self.state_dict[name] = torch.load(value, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(refusal(f"{name!r} of a distributed checkpoint", str(error))) from error


def _empty(name: str, entry: Any) -> tuple[Any] | None:
    """Where an entry is read to, in a tuple; None for what is not read."""
    if isinstance(entry, TensorStorageMetadata):
        return (torch.empty(entry.size, dtype=entry.properties.dtype),)
    parts = name.split(".")
    return (None,) if isinstance(entry, BytesStorageMetadata) and {METADATA_KEY, "args"} & set(parts) else None


def _nested(flat: dict[str, Any], paths: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The mapping that was saved; what lay in lists lies under its indices."""
    state: dict[str, Any] = {}
    for name, value in flat.items():
        *outer, last = paths.get(name, (name,))
        place = state
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    return state
