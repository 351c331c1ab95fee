"""FSDP names that DINOv2 uses and today's torch has renamed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch.distributed.fsdp._runtime_utils as runtime
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

__all__ = ["old_fsdp", "reshard"]

_STREAMS = ("_unshard_stream", "_post_backward_stream", "_pre_unshard_stream", "_all_reduce_stream", "_default_stream")
_reshard = runtime._reshard


def reshard(state: Any, handle: Any, free: Any) -> None:
    """`_reshard` for one handle as now, or for the lists of torch 2.0."""
    if isinstance(handle, list):
        for one, free_one in zip(handle, free, strict=True):
            _reshard(state, one, free_one)
    else:
        _reshard(state, handle, free)


@contextlib.contextmanager
def old_fsdp() -> Iterator[None]:
    """Within this context FSDP modules answer to `_streams` (get and share) and `_handles` as in torch 2.0."""
    if hasattr(FSDP, "_streams") or hasattr(FSDP, "_handles"):
        yield
        return
    handles = property(lambda module: [module._handle] if module._handle else [])
    with (
        mock.patch.object(FSDP, "_streams", property(_get_streams, _set_streams), create=True),
        mock.patch.object(FSDP, "_handles", handles, create=True),
        mock.patch.object(runtime, "_reshard", reshard),
    ):
        yield


def _get_streams(module: FSDP) -> dict[str, Any]:
    return {name: getattr(module, name) for name in _STREAMS if hasattr(module, name)}


def _set_streams(module: FSDP, streams: dict[str, Any]) -> None:
    for name, stream in streams.items():
        setattr(module, name, stream)
