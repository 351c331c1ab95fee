"""One file per codebase: how that codebase's attention is reached.

Most attention modules call ``F.scaled_dot_product_attention``; their own forward runs unchanged, and only that
call is answered by :func:`attn_plugins.attention`. Explicit forwards exist where upstream computes attention in
another way.

| adapter | reaches |
|---|---|
| ``dinov1`` | DINOv1's ``Attention``, which returns its map |
| ``dinov2`` | DINOv2's ``MemEffAttention``, packed batches included; DINOv2 before June 2025; lightly-train's |
| ``transformers`` | what goes through ``AttentionInterface``: ViT, DINOv2, DINOv3, DeiT, BEiT, SigLIP, CLIP, ... |
| ``multihead_attention`` | ``torch.nn.MultiheadAttention``: torchvision, mmcv and mmsegmentation |
| ``sdpa`` | what calls torch's SDPA: DINOv3, timm, most ViTs that people write today |
| ``softmax`` | what multiplies, takes a softmax over the last dimension and multiplies: Swin, LeViT, MViTv2, ... |

Attention between channels (XCiT, DaViT) and of one class token (CaiT) has rows of weights like any other and is
patched. Pooling heads, in which learned queries read the features, are patched only by name.
"""

from . import dinov1, dinov2, mha, sdpa, softmax, transformers
from .base import Adapter, Container, adapter_for, register_adapter

__all__ = ["Adapter", "Container", "adapter_for", "register_adapter"]

# The most general first: where several know a class, the last one is used.
for _codebase in (softmax, sdpa, mha, transformers, dinov2, dinov1):
    register_adapter(_codebase.ADAPTER)
