"""DINOv2's nested batches need xformers' mask and index operations; here on the CPU, in a few lines of torch."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor


class BlockDiagonalMask:
    """As much of xformers' class as DINOv2 and attn_plugins use."""

    _batch_sizes: list[int]  # which DINOv2 sets

    class _Info:
        def __init__(self, lengths: list[int]) -> None:
            self.seqstart_py = [0, *torch.tensor(lengths).cumsum(0).tolist()]

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.q_seqinfo, self.k_seqinfo = lengths, self._Info(lengths), self._Info(lengths)

    @classmethod
    def from_seqlens(cls, lengths: list[int]) -> BlockDiagonalMask:
        return cls(lengths)

    def split(self, x: Tensor) -> list[Tensor]:
        parts, start = [], 0
        for batch in self._batch_sizes:
            length = self.lengths[start]
            parts.append(batch * length)
            start += batch
        firsts = [sum(self._batch_sizes[:i]) for i in range(len(self._batch_sizes))]
        return [
            part.reshape(batch, self.lengths[first], -1)
            for part, batch, first in zip(x.split(parts, dim=1), self._batch_sizes, firsts, strict=True)
        ]


class _Fmha:
    BlockDiagonalMask = BlockDiagonalMask


def index_select_cat(sources: list[Tensor], indices: list[Tensor]) -> Tensor:
    return torch.cat([source[index].flatten() for source, index in zip(sources, indices, strict=True)])


def scaled_index_add(x: Tensor, index: Tensor, source: Tensor, scaling: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.index_add(x, 0, index, source * scaling, alpha=alpha)


@pytest.fixture
def with_fmha(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the block modules that are imported for the test these operations."""
    family = request.node.callspec.params["family"]
    if "dinov3" in family:
        return
    from .tiny_vits import FAMILIES

    FAMILIES[family].build()  # imports the codebase, or skips
    name = (
        "dinov2.layers.block" if family == "dinov2" else "lightly_train._models.dinov2_vit.dinov2_vit_src.layers.block"
    )
    module = sys.modules[name]
    monkeypatch.setattr(module, "XFORMERS_AVAILABLE", True)
    monkeypatch.setattr(module, "attn_bias_cache", {})
    for attribute, value in (
        ("fmha", _Fmha),
        ("index_select_cat", index_select_cat),
        ("scaled_index_add", scaled_index_add),
    ):
        monkeypatch.setattr(module, attribute, value, raising=False)
