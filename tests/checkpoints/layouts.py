"""State dicts under the names that the code bases give them, small enough to write in milliseconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def backbone(
    *, dim: int = 384, depth: int = 12, patch: int = 16, grid: int | None = 2
) -> OrderedDict[str, torch.Tensor]:
    """DINOv1's names. Only what tells the shape is at full size; grid None leaves the position embedding out."""
    state = OrderedDict(cls_token=torch.randn(1, 1, dim))
    if grid is not None:
        state["pos_embed"] = torch.randn(1, 1 + grid * grid, dim)
    state["patch_embed.proj.weight"] = torch.randn(dim, 3, patch, patch)
    for index in range(depth):
        state[f"blocks.{index}.norm1.weight"] = torch.randn(dim)
        state[f"blocks.{index}.mlp.fc1.weight"] = torch.randn(2, dim)
    state["norm.weight"] = torch.randn(dim)
    return state


def dinov2(*, registers: int = 4, chunks: int = 0) -> OrderedDict[str, torch.Tensor]:
    """DINOv2's names, block chunks included: blocks.CHUNK.INDEX."""
    state = backbone(patch=14)
    state["mask_token"] = torch.randn(1, 384)
    if registers:
        state["register_tokens"] = torch.randn(1, registers, 384)
    for index in range(12):
        state[f"blocks.{index}.ls1.gamma"] = torch.randn(384)
    if chunks:
        state = prefixed(state, "", lambda key: _chunk(key, 12 // chunks))
    return state


def dinov3() -> OrderedDict[str, torch.Tensor]:
    state = backbone(grid=None)
    state["mask_token"] = torch.randn(1, 384)
    state["storage_tokens"] = torch.randn(1, 4, 384)
    state["rope_embed.periods"] = torch.randn(16)
    return state


def prefixed(
    state: Mapping[str, Tensor], prefix: str, rename: Callable[[str], str] = lambda key: key
) -> OrderedDict[str, Tensor]:
    return OrderedDict((prefix + rename(key), value) for key, value in state.items())


def _chunk(key: str, size: int) -> str:
    if not key.startswith("blocks."):
        return key
    _, index, rest = key.split(".", 2)
    return f"blocks.{int(index) // size}.{index}.{rest}"
