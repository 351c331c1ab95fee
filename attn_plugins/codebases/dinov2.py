"""DINOv2's ``MemEffAttention`` and ``Attention`` where they do not call torch's SDPA.

That is: official DINOv2 (xformers, with a ``BlockDiagonalMask`` for nested batches of crops), DINOv2 before
June 2025, lightly-train's DINOv2, MAE's and other forks of timm 0.4 to 0.6 (softmax over materialised weights),
where the code is exactly theirs. Official DINOv2's ``Attention`` of today calls SDPA and is left to :mod:`.generic`,
as are forks that changed anything.

Modifications:
- one forward for the path with and the path without xformers; xformers' own kernels are not needed, also not
  for nested batches, on any device;
- attention dropout follows ``Attention`` (``MemEffAttention`` with xformers ignores it).

Why upstream's forward does not run: packed batches of crops are computed sequence by sequence, without xformers' fused
kernel that no CPU has; and the plain form takes the fused kernels of this package instead of materialised weights.

Mirrors facebookresearch/dinov2 at b8931f7bf91576930313be2c6d6af376033b35f0.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Adapter
from .exact import digest_of
from .qkv import attend

__all__ = ["ADAPTER"]


FORWARDS = {
    "45aaa3cfea71760f",  # MemEffAttention: facebookresearch/dinov2 b8931f7 (since ebc1cba), lightly-train 0.18
    "462c76aa70740308",  # Attention: facebookresearch/dinov2 fc49f49 to 81b2b64, lightly-train 0.18
    "72bb8e9cb37919d2",  # Attention: timm 0.4.12, and with it MAE
    "75f33abbba615501",  # Attention: timm 0.5.4 and 0.6.13
}
"""Digests (:mod:`.exact`) of ``forward``."""


def _matches(cls: type) -> bool:
    return digest_of(getattr(cls, "forward", None)) in FORWARDS


def _overrides(base: type) -> dict[str, Any]:
    def forward(self: Any, x: Tensor, attn_bias: Any = None) -> Tensor:
        """``x: [B, N, C]`` (packed: ``[1, sum of lengths, C]`` with a ``BlockDiagonalMask``) to the same shape."""
        return attend(self, x, attn_mask=attn_bias)

    return {"forward": forward}


ADAPTER = Adapter("dinov2", _matches, _overrides)
