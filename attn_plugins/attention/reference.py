"""The readable attention: scores are materialised, any normalizer, mask, dtype and device works."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Backend
from .call import AttentionCall

__all__ = ["BACKEND", "attention_scores", "attention_weights", "run", "weighted_values"]


def attention_scores(call: AttentionCall) -> Tensor:
    """Scores ``[..., H, N, S]``, masks among them, as the normalizer gets them."""
    scores = (call.query * call.scale) @ call.key.transpose(-2, -1)
    if call.is_causal:
        n, s = scores.shape[-2:]
        keep = scores.new_ones((n, s), dtype=torch.bool).tril()
        scores = scores.masked_fill(~keep, -torch.inf)
    if call.attn_mask is not None:
        if call.attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~call.attn_mask, -torch.inf)
        else:
            scores = scores + call.attn_mask.to(scores.dtype)
    return scores


def attention_weights(call: AttentionCall) -> Tensor:
    """Weights ``[..., H, N, S]`` before dropout; rows with every key masked are zero."""
    return call.normalizer(attention_scores(call), dim=-1)


def run(call: AttentionCall) -> Tensor:
    """Output ``[..., H, N, Dv]``."""
    return weighted_values(call, attention_weights(call))


def weighted_values(call: AttentionCall, weights: Tensor) -> Tensor:
    """Output ``[..., H, N, Dv]`` of weights ``[..., H, N, S]``, some of which are dropped."""
    if call.dropout_p > 0:
        weights = F.dropout(weights, call.dropout_p)
    return weights.to(call.value.dtype) @ call.value


BACKEND = Backend("reference", run)
