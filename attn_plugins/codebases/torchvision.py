"""``torch.nn.MultiheadAttention``: torchvision's ViT, open_clip, mmcv and mmsegmentation, ``nn.TransformerEncoder``.

Modifications:
- the native fast paths of eval mode, which compute softmax in one kernel, are not taken: neither
  ``MultiheadAttention``'s own nor those of ``TransformerEncoderLayer`` and ``TransformerEncoder`` around it;
- the weights that ``need_weights=True`` returns are those that were used.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import Adapter, Codebase, Container
from .parts import Features
from .proof import answered

__all__ = ["TORCHVISION"]


def _always(value: Any) -> property:
    """An attribute that reads as ``value`` while the module is patched; what its ``__dict__`` holds is left alone."""
    return property(lambda self: value)


def _overrides(base: Any) -> dict[str, Any]:
    return {"forward": answered(base.forward)}


# Both fast paths ask for these attributes and go the way of training mode without them.
LAYER = Container(
    lambda cls: issubclass(cls, nn.TransformerEncoderLayer), lambda base: {"activation_relu_or_gelu": _always(0)}
)
ENCODER = Container(
    lambda cls: issubclass(cls, nn.TransformerEncoder), lambda base: {"use_nested_tensor": _always(False)}
)

ADAPTER = Adapter(
    "multihead_attention",
    lambda cls: issubclass(cls, nn.MultiheadAttention),
    _overrides,
    around=(LAYER, ENCODER),
)
TORCHVISION = Codebase(
    "torchvision",
    adapters=(ADAPTER,),
    features=Features(("encoder.layers",), ("encoder.ln",), ("hidden_dim",), ("patch_size",)),
)
