"""What the official trainers expect of the torch of their day, and today's does otherwise."""

from __future__ import annotations

from typing import Any

from .. import torch_names
from ..checkpoints import allowed_globals

__all__ = ["keep_old_fsdp_names", "read_own_checkpoints"]

_STREAMS = ("_unshard_stream", "_post_backward_stream", "_pre_unshard_stream", "_all_reduce_stream", "_default_stream")


def read_own_checkpoints() -> None:
    """Let ``torch.load`` read what a trainer of 2021 saved beside its tensors (a Namespace, numpy numbers).

    Since torch 2.6 it refuses them, and with them DINOv1's own checkpoints. Only that list is allowed.
    """
    torch_names.add_safe_globals(allowed_globals())


def keep_old_fsdp_names() -> None:
    """Let FSDP modules answer to what DINOv2 calls, torch 2.0's: ``_streams``, ``_handles``, ``_reshard`` of lists.

    To be called before ``dinov2.fsdp`` is imported, which takes ``_reshard`` by name.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    if hasattr(FSDP, "_streams") or hasattr(FSDP, "_handles"):
        return
    reshard_one = torch_names.reshard()

    def reshard(state: Any, handles: Any, free: Any) -> None:
        if not isinstance(handles, list):
            handles, free = [handles], [free]
        for handle, free_it in zip(handles, free, strict=True):
            reshard_one(state, handle, free_it)

    names: dict[str, Any] = {
        "_streams": property(_get_streams, _set_streams),
        "_handles": property(lambda module: [module._handle] if module._handle else []),
    }
    for name, value in names.items():
        setattr(FSDP, name, value)
    torch_names.set_reshard(reshard)


def _get_streams(module: Any) -> dict[str, Any]:
    return {name: vars(module)[name] for name in _STREAMS if name in vars(module)}


def _set_streams(module: Any, streams: dict[str, Any]) -> None:
    for name, stream in streams.items():
        setattr(module, name, stream)
