"""One file per codebase: how that codebase's attention is reached.

Most attention modules call ``F.scaled_dot_product_attention``; their own forward runs unchanged, and only that
call is answered by :func:`attn_plugins.attention` (:mod:`.sdpa`). Explicit adapters exist where upstream
computes attention in another way.
"""

from . import dinov1, dinov2, sdpa
from .base import Adapter, adapter_for, register_adapter

__all__ = ["Adapter", "adapter_for", "dinov1", "dinov2", "register_adapter", "sdpa"]
