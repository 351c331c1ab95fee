"""One file per codebase: how that codebase's attention is reached.

Upstream's own forward runs, and the attention calls in it are answered by :func:`attn_plugins.attention`. A forward
of ours takes its place only where the code is known to be exactly that one (:mod:`.exact`).

| adapter | reaches |
|---|---|
| ``dinov1`` | DINOv1's ``Attention``, which returns its map |
| ``dinov2`` | DINOv2's ``MemEffAttention``, packed batches included; DINOv2 before June 2025; lightly-train's; MAE's |
| ``transformers`` | what goes through ``AttentionInterface``: ViT, DINOv2, DINOv3, DeiT, BEiT, SigLIP, CLIP, ... |
| ``multihead_attention`` | ``torch.nn.MultiheadAttention``: torchvision, mmcv and mmsegmentation |
| ``sdpa`` | what calls torch's SDPA or xformers: DINOv3, timm, most ViTs that people write today |
| ``softmax`` | what multiplies, takes a softmax over the keys and multiplies: Swin, LeViT, CvT, CroCo, ... |

Attention between channels (XCiT, DaViT) and of one class token (CaiT) has rows of weights like any other and is
patched. Pooling heads, in which learned queries read the features, are patched only by name.
"""

from . import dinov1, dinov2, generic, torchvision, transformers
from .base import Adapter, Container, adapter_for, register_adapter

__all__ = ["Adapter", "Container", "adapter_for", "register_adapter"]

# The most general first: where several know a module, the last one is used.
for _adapter in (
    generic.SOFTMAX,
    generic.SDPA,
    torchvision.ADAPTER,
    transformers.ADAPTER,
    dinov2.ADAPTER,
    dinov1.ADAPTER,
):
    register_adapter(_adapter)
