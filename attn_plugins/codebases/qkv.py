"""The attention that most self-supervised ViTs share: one ``qkv`` projection, heads, one output ``proj``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..attention import attention

__all__ = ["attend", "dropout_p", "finish", "split_heads"]


def split_heads(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v ``[B, H, N, D]`` as views of one projection of ``x: [B, N, C]``."""
    B, N, C = x.shape
    qkv = module.qkv(x).reshape(B, N, 3, module.num_heads, C // module.num_heads)
    q, k, v = (t.transpose(1, 2) for t in torch.unbind(qkv, 2))
    return q, k, v


def dropout_p(module: Any) -> float:
    """Attention dropout now: ``attn_drop`` is a probability or an ``nn.Dropout``; zero in eval mode."""
    drop = module.attn_drop
    p = drop.p if isinstance(drop, nn.Dropout) else float(drop)
    return p if module.training else 0.0


def finish(module: Any, out: Tensor) -> Tensor:
    """Heads ``[B, H, N, D]`` back to ``[B, N, C]``, then ``proj`` and ``proj_drop``."""
    projected: Tensor = module.proj_drop(module.proj(out.transpose(1, 2).flatten(2)))
    return projected


def attend(module: Any, x: Tensor, attn_mask: Any = None) -> Tensor:
    """The whole attention of a layer: ``x: [B, N, C]`` to ``[B, N, C]`` with the module's normalizer."""
    q, k, v = split_heads(module, x)
    out = attention(
        q,
        k,
        v,
        attn_mask=attn_mask,
        dropout_p=dropout_p(module),
        scale=module.scale,
        normalizer=module.attn_plugins_normalizer,
    )
    return finish(module, out)
