"""See the attention weights of a model as they are computed, one layer's at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..mechanisms import applied_mechanisms
from ..patching import NORMALIZER, find_attention, patched

__all__ = ["recorded"]

Seen = Callable[[int, Tensor], None]


class _Recorder(nn.Module):
    """A layer's normalizer that shows its weights to somebody; it has no ``alpha``, so no kernel replaces it."""

    def __init__(self, inner: Callable[..., Tensor], layer: int, seen: Seen) -> None:
        super().__init__()
        self.inner = inner
        self.layer = layer
        self.seen = seen

    def forward(self, scores: Tensor, dim: int = -1) -> Tensor:
        """``scores: [..., N, S]`` to weights of the same shape."""
        weights = self.inner(scores, dim=dim)
        with torch.no_grad():
            self.seen(self.layer, weights.detach())
        return weights


@contextlib.contextmanager
def recorded(model: nn.Module, seen: Seen) -> Iterator[nn.Module]:
    """Context in which every attention of ``model`` shows its weights.

    Attention that is not patched is run with softmax, which is what it computes anyway.

    Args:
        model: any model that ``attn_plugins.patch`` knows, patched or not.
        seen: called as ``seen(layer, weights)`` with the layer's index in the order of ``describe`` and
            weights ``[B, H, N, S]``, before the next layer runs: whoever keeps nothing, holds one layer's maps.

    Raises:
        UnsupportedModelError: the model has no attention that can be patched.
    """
    sites = find_attention(model)
    bare = [index for index, site in enumerate(sites) if getattr(site.module, NORMALIZER, None) is None]
    spec = "+".join(["softmax", *map(str, applied_mechanisms(model))])
    with patched(model, spec, layers=bare) if bare else contextlib.nullcontext(model):
        before: list[Any] = [getattr(site.module, NORMALIZER) for site in sites]
        try:
            for index, (site, normalizer) in enumerate(zip(sites, before, strict=True)):
                _replace(site.module, _Recorder(normalizer, index, seen))
            yield model
        finally:
            for site, normalizer in zip(sites, before, strict=True):
                _replace(site.module, normalizer)


def _replace(module: nn.Module, normalizer: Any) -> None:
    # A normalizer with parameters is a submodule and a plain one an attribute: one cannot be assigned over the other.
    delattr(module, NORMALIZER)
    setattr(module, NORMALIZER, normalizer)
