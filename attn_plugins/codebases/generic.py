"""Any module whose code computes attention, found by what the code does (``recognise``).

``sdpa``: a method calls ``F.scaled_dot_product_attention``, ``F.multi_head_attention_forward``, or xformers' or
flash-attn's functions. This covers official DINOv3 (``compute_attention``, so ``forward`` and ``forward_list``),
DINOv2, timm's classes with a fused path (with ``fused_attn`` on or off) and most ViTs that people write today.

``softmax``: a method multiplies q by k, takes a softmax and multiplies by v, in whatever spelling (Swin, LeViT, CvT,
MViTv2, CroCo, many research ViTs). The weights are materialised as upstream does. Where the heads are in such scores
is not known, so normalizers with a parameter per head are refused.

Modifications: none to the code that runs, with whatever it does to q and k before (RoPE, q/k norm), to the scores
(biases, masks) and to the output after (gates, norms); only those calls are answered differently.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedModelError
from ..swap import bare
from .base import Adapter, Codebase
from .recognise import analyse, is_torchs

__all__ = ["GENERIC", "SDPA", "SOFTMAX"]


def _methods(module: nn.Module, called: bool) -> tuple[str, ...]:
    cls = bare(module)
    if is_torchs(cls):  # torch's one attention has an adapter of its own
        return ()
    found = analyse(module, cls)
    return tuple(found.methods) if found.called == called else ()


def _calls(module: nn.Module) -> tuple[str, ...]:
    return _methods(module, called=True)


def _materialises(module: nn.Module) -> tuple[str, ...]:
    return _methods(module, called=False)


def _check(module: nn.Module) -> None:
    fused = analyse(module, bare(module)).fused
    if fused:
        raise UnsupportedModelError(
            f"{bare(module).__qualname__} calls {' and '.join(fused)}, which cannot be answered: it would go on to "
            "compute softmax there. Build the model without it (most have an option for SDPA), or leave this layer "
            "out of layers="
        )


def _never(cls: type) -> bool:
    return False


def _no_overrides(base: type) -> dict[str, Any]:
    return {}


SDPA = Adapter("sdpa", _never, _no_overrides, _check, finds=_calls)
SOFTMAX = Adapter("softmax", _never, _no_overrides, _check, num_heads=lambda module: None, finds=_materialises)
GENERIC = Codebase("generic", adapters=(SOFTMAX, SDPA))
