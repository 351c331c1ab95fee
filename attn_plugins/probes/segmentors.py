"""Probes as mmseg segmentors: a frozen backbone, and a head that is sized from it."""

from __future__ import annotations

from typing import Any

from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS

__all__ = ["LinearProbe"]


@MODELS.register_module()
class LinearProbe(EncoderDecoder):
    """mmseg's `EncoderDecoder` whose head takes its input channels from the backbone."""

    def _init_decode_head(self, decode_head: Any) -> None:
        super()._init_decode_head({"in_channels": self.backbone.channels, **decode_head})
