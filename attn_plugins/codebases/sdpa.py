"""Any module with a method that calls ``F.scaled_dot_product_attention`` or ``F.multi_head_attention_forward``.

This covers official DINOv3 ``SelfAttention`` (``compute_attention``, so ``forward`` and ``forward_list``),
DINOv2 ``Attention``, timm's classes with a fused path (with ``fused_attn`` on or off) and most hand-written
ViTs, with whatever they do to q and k before (RoPE, q/k norm) and to the output after (gates, norms).

Modifications: none to the code that runs; only those calls are answered differently.
"""

from __future__ import annotations

from typing import Any

from .base import Adapter
from .intercept import intercepted
from .recognise import methods

__all__ = ["ADAPTER"]

CALLS = {"scaled_dot_product_attention", "multi_head_attention_forward"}


def _matches(cls: type) -> bool:
    return any(names & CALLS for _, names in methods(cls))


def _overrides(base: type) -> dict[str, Any]:
    # A softmax in the same method is the path with materialised weights (timm's fused_attn=False).
    return {
        name: intercepted(getattr(base, name), softmax="softmax" in names)
        for name, names in methods(base)
        if names & CALLS
    }


ADAPTER = Adapter("sdpa", _matches, _overrides)
