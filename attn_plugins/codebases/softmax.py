"""Hand-written attention: a method that multiplies q by k, takes a softmax over the last dimension, multiplies by v.

For codebases that no other adapter knows (LeViT, TinyViT, torchvision's Swin, many research ViTs). The weights
are materialised as upstream does; only the softmax is answered differently.

Where the heads are in such scores is not known, so normalizers with a parameter per head are refused.

Modifications: none to the code that runs; only ``softmax`` over the last dimension is answered differently.
"""

from __future__ import annotations

import inspect
from typing import Any

from .base import Adapter
from .intercept import intercepted
from .recognise import code_names, methods, softmax_between_products

__all__ = ["ADAPTER"]

PROJECTIONS = {"qkv", "qk", "q", "to_qkv", "to_q", "in_proj", "q_proj", "query", "qkvs", "wq"}


def _attention_methods(cls: type) -> list[str]:
    found = dict(methods(cls))
    if not PROJECTIONS & code_names(inspect.getattr_static(cls, "__init__")).union(*found.values()):
        return []
    return [name for name in found if softmax_between_products(inspect.getattr_static(cls, name))]


def _overrides(base: type) -> dict[str, Any]:
    return {name: intercepted(getattr(base, name), softmax=True) for name in _attention_methods(base)}


ADAPTER = Adapter("softmax", lambda cls: bool(_attention_methods(cls)), _overrides, num_heads=lambda module: None)
