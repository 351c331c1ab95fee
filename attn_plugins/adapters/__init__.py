"""One file per codebase: how that codebase's attention is reached.

Most attention modules call ``F.scaled_dot_product_attention``; their own forward runs unchanged, and only that
call is answered by :func:`attn_plugins.attention` (:mod:`.sdpa`). Explicit adapters exist where upstream
computes attention in another way.
"""

from . import dinov1, dinov2, mha, sdpa, softmax, transformers
from .base import Adapter, Container, adapter_for, register_adapter

__all__ = ["Adapter", "Container", "adapter_for", "register_adapter"]

# The most general first: where several know a class, the last one is used.
for module in (softmax, sdpa, mha, transformers, dinov2, dinov1):
    register_adapter(module.ADAPTER)
