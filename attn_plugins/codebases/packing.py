"""Blocks of DINOv2 and DINOv3, which train on batches of crops that are packed into one row of tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..swap import PREFIX

__all__ = ["LAYOUT", "packing"]

LAYOUT = PREFIX + "layout"
"""Attribute of a block, and of its modules, that says which of their tokens are which."""


def packing(base: Any) -> dict[str, Any]:
    """Overrides of a block that note the sizes of the batches that it is given in its layout."""

    def forward(self: Any, x: Tensor | list[Tensor], *args: Any, **kwargs: Any) -> Any:
        batches = [x] if isinstance(x, Tensor) else x
        # Stochastic depth of DINOv2 and DINOv3 runs the branches on this many images of each batch.
        drop = self.sample_drop_ratio if self.training else 0.0
        kept = [max(int(len(batch) * (1 - drop)), 1) if drop > 0 else len(batch) for batch in batches]
        layout = getattr(self, LAYOUT)
        layout.crops = tuple((count, batch.shape[1]) for count, batch in zip(kept, batches, strict=True))
        layout.packed = not isinstance(x, Tensor) and hasattr(self, "forward_nested")
        return base.forward(self, x, *args, **kwargs)

    return {"forward": forward}
