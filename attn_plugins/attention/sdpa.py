"""softmax: torch's own ``F.scaled_dot_product_attention``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .backend import Backend
from .call import AttentionCall

__all__ = ["BACKEND", "run", "unsupported"]


def unsupported(call: AttentionCall) -> str | None:
    """Why torch's kernels cannot run this call, or None."""
    return None if isinstance(call.alpha, float) and call.alpha == 1.0 else "it computes softmax only"


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
