"""MAE: its models are timm's, with a decoder beside them in the checkpoint."""

from __future__ import annotations

from collections.abc import Collection

from .base import Codebase
from .parts import StateDict
from .timm import BUILDING

__all__ = ["MAE"]


def _has_decoder(keys: Collection[str], heads: Collection[str]) -> bool:
    return any(name.startswith("decoder_") for name in heads)


MAE = Codebase("mae", state=StateDict(_has_decoder), building=BUILDING)
"""The attention is that of DINOv2's adapter, whose digests name it; the parts are timm's."""
