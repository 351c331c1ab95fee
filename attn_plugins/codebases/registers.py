"""How register tokens that a ViT was not built with enter it: what the class layers of several codebases share.

The module that embeds the image has them in ``attn_plugins_registers``: ``tokens: [1, num, C]``, ``insert`` and
``drop``; and it notes in ``attn_plugins_registers__seen`` that they have come, which the first block asks for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["inserted", "native"]


def inserted(root: Any, x: Tensor) -> Tensor:
    """``x: [B, 1 + N, C]`` with the registers of ``root``, which its first block is told to expect."""
    registers = root.attn_plugins_registers
    out: Tensor = registers.insert(x)
    _note(root, out, out.shape[1] - x.shape[1])
    return out


def _note(root: Any, x: Tensor, num: int) -> None:
    seen = vars(root).get("attn_plugins_registers__seen")
    if seen is not None:  # a pickle of release 0.1 has none, and no first block that asks
        seen.note(x, num)


def native(base: Any, tokens: str, number: str) -> dict[str, Any]:
    """Properties where the codebase looks for its own registers, which its own code then inserts."""

    def prepare_tokens_with_masks(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = base.prepare_tokens_with_masks(self, *args, **kwargs)
        x = prepared if isinstance(prepared, Tensor) else prepared[0]  # DINOv3's come with the size of their grid
        _note(self, x, self.attn_plugins_registers.tokens.shape[1])
        return prepared

    return {
        tokens: property(lambda self: self.attn_plugins_registers.tokens),
        number: property(lambda self: self.attn_plugins_registers.tokens.shape[1]),
        "prepare_tokens_with_masks": prepare_tokens_with_masks,
    }
