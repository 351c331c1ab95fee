"""DINOv2's ``MemEffAttention`` and ``Attention`` where they do not call torch's SDPA.

That is: official DINOv2 (xformers, with a ``BlockDiagonalMask`` for nested batches of crops), DINOv2 before
June 2025, lightly-train's DINOv2 and older timm forks (softmax over materialised weights). Official DINOv2's
``Attention`` of today calls SDPA and is left to :mod:`.sdpa`.

Modifications:
- one forward for the path with and the path without xformers; xformers' own kernels are not needed, also not
  for nested batches, on any device;
- attention dropout follows ``Attention`` (``MemEffAttention`` with xformers ignores it).

Mirrors facebookresearch/dinov2 at b8931f7bf91576930313be2c6d6af376033b35f0.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Adapter
from .qkv import PLAIN, attend
from .recognise import code_names, returns_pair

__all__ = ["ADAPTER"]


def _matches(cls: type) -> bool:
    forward = getattr(cls, "forward", None)
    names = code_names(forward)
    return "memory_efficient_attention" in names or (names == PLAIN and not returns_pair(forward))


def _overrides(base: type) -> dict[str, Any]:
    def forward(self: Any, x: Tensor, attn_bias: Any = None) -> Tensor:
        """``x: [B, N, C]`` (packed: ``[1, sum of lengths, C]`` with a ``BlockDiagonalMask``) to the same shape."""
        return attend(self, x, attn_mask=attn_bias)

    return {"forward": forward}


ADAPTER = Adapter("dinov2", _matches, _overrides)
