"""Any module with a method that calls ``F.scaled_dot_product_attention``.

This covers official DINOv3 ``SelfAttention`` (``compute_attention``, so ``forward`` and ``forward_list``),
DINOv2 ``Attention``, timm's fused paths and most hand-written ViTs, with whatever they do to q and k before
(RoPE, q/k norm) and to the output after (gates, norms).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Adapter, code_names, register_adapter
from .intercept import intercepted

__all__ = ["ADAPTER"]

CALL = "scaled_dot_product_attention"


def _methods(cls: type) -> dict[str, Any]:
    """Methods of ``cls`` and its bases, up to nn.Module, whose code names the call."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for owner in cls.__mro__:
        if owner is nn.Module:
            break
        for name, value in vars(owner).items():
            if name not in seen and CALL in code_names(value):
                found[name] = value
            seen.add(name)
    return found


def _overrides(base: type) -> dict[str, Any]:
    overrides: dict[str, Any] = {name: intercepted(method, softmax=True) for name, method in _methods(base).items()}
    return overrides


def _matches(cls: type) -> bool:
    return bool(_methods(cls)) and not cls.__module__.startswith("torch.nn.modules")


ADAPTER = register_adapter(Adapter("sdpa", _matches, _overrides))
