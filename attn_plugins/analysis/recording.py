"""See the attention weights of a model as they are computed, one layer's at a time."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.scale import ScoreScale
from ..mechanisms import applied_mechanisms
from ..patching import NORMALIZER, find_attention, patched

__all__ = ["Answer", "recorded"]

# Below it, entmax's power 1 / (alpha - 1) is above 5.
_POWER = 1.2


@dataclass(frozen=True)
class Answer:
    """One layer's attention in one forward.

    Attributes:
        weights: ``[B, H, N, S]``.
        scores: what they were made from.
        normalizer: what made them; it is called as ``normalizer(scores, dim)``.
    """

    weights: Tensor
    scores: Tensor
    normalizer: Callable[..., Tensor]

    def support(self) -> Tensor:
        """``[B, H, N, S]``: keys to which a row gives weight, also where that weight is too small for its dtype.

        Softmax gives every key weight that is not masked. Weights of entmax are d^(1 / (alpha - 1)) with d the
        distance to the threshold, at least the spacing of floats near it (2^-24 of a threshold of at most
        n^-(alpha - 1)): their float32 does not underflow for alpha of 1.2 and above. Below, and for normalizers that
        nothing is known of, and in half precision, the row is computed again in float64.
        """
        alpha = _alpha(self.normalizer)
        if alpha == 1:
            return self.scores > float("-inf")
        if alpha is not None and alpha >= _POWER and self.weights.dtype != torch.float16:
            return self.weights > 0
        module = self.normalizer
        if isinstance(module, nn.Module):
            module = copy.deepcopy(module).double()
        return module(self.scores.double(), dim=-1) > 0


def _alpha(normalizer: Any) -> float | None:
    """The smallest alpha of a normalizer's heads; None for one that is no member of entmax's family."""
    alpha = getattr(normalizer, "alpha", None)
    if isinstance(alpha, Tensor):
        return float(alpha.detach().min())
    return None if alpha is None else float(alpha)


Seen = Callable[[int, Answer], None]


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
            self.seen(self.layer, Answer(weights.detach(), scores.detach(), self.inner))
        return weights


@contextlib.contextmanager
def recorded(model: nn.Module, seen: Seen) -> Iterator[nn.Module]:
    """Context in which every attention of ``model`` shows its weights.

    Attention that is not patched is run with softmax, which is what it computes anyway.

    Args:
        model: any model that ``attn_plugins.patch`` knows, patched or not.
        seen: called as ``seen(layer, answer)`` with the layer's index in the order of ``describe``, before the next
            layer runs: whoever keeps nothing, holds one layer's maps.

    Raises:
        UnsupportedModelError: the model has no attention that can be patched.
    """
    sites = find_attention(model)
    bare = [index for index, site in enumerate(sites) if getattr(site.module, NORMALIZER, None) is None]
    spec = "+".join(["softmax", *map(str, applied_mechanisms(model))])
    with patched(model, spec, layers=bare) if bare else contextlib.nullcontext(model):
        # Behind a factor on the scores, which may need the query: what is recorded is what is normalized.
        places = [_place(site.module) for site in sites]
        before: list[Any] = [getattr(owner, name) for owner, name in places]
        try:
            for index, ((owner, name), normalizer) in enumerate(zip(places, before, strict=True)):
                _replace(owner, name, _Recorder(normalizer, index, seen))
            yield model
        finally:
            for (owner, name), normalizer in zip(places, before, strict=True):
                _replace(owner, name, normalizer)


def _place(module: nn.Module) -> tuple[nn.Module, str]:
    """Where a layer's normalizer is held."""
    normalizer = getattr(module, NORMALIZER)
    return (normalizer, "inner") if isinstance(normalizer, ScoreScale) else (module, NORMALIZER)


def _replace(owner: nn.Module, name: str, normalizer: Any) -> None:
    # A normalizer with parameters is a submodule and a plain one an attribute: one cannot be assigned over the other.
    delattr(owner, name)
    setattr(owner, name, normalizer)
