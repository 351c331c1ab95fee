"""What pickles of release 0.1 name."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..codebases.base import Layer
from ..codebases.generic import SDPA, SOFTMAX
from ..codebases.recognise import analyse
from ..swap import _rebuild as rebuild

__all__ = ["_rebuild"]


def _rebuild(base: Any, adapter_name: str, container: int | None) -> nn.Module:
    """A module of class ``base`` with the class layer of an adapter of that release."""
    if adapter_name in (SDPA.name, SOFTMAX.name):
        blank = base.__new__(base)
        nn.Module.__init__(blank)
        return rebuild(base, Layer(adapter_name, methods=tuple(analyse(blank, base).methods) or ("forward",)))
    return rebuild(base, Layer(adapter_name, container))
