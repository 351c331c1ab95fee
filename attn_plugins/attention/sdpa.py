"""softmax: torch's own ``F.scaled_dot_product_attention``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .backend import Backend
from .call import AttentionCall

__all__ = ["BACKEND", "run", "unsupported"]


def unsupported(call: AttentionCall) -> str | None:
    """Why torch's kernels cannot run this call, or None."""
    if not (isinstance(call.alpha, float) and call.alpha == 1.0):
        return "it computes softmax only"
    if call.is_causal and isinstance(call.scale, int | float) and call.scale <= 0:
        # They fill in -inf first and scale afterwards: 0 * -inf is NaN, and -1 * -inf shows what was hidden.
        return f"its fused kernels take is_causal with a positive scale only, not {call.scale}"
    return None


def run(call: AttentionCall) -> Tensor:
    """Output ``[..., H, N, Dv]``."""
    return F.scaled_dot_product_attention(
        call.query,
        call.key,
        call.value,
        attn_mask=call.attn_mask,
        dropout_p=call.dropout_p,
        is_causal=call.is_causal,
        scale=call.scale,
    )


BACKEND = Backend("sdpa", run, unsupported)
