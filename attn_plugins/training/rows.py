"""A few rows of the attention that is about to be computed, and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..attention import AttentionCall, attention_weights

__all__ = ["METRICS", "LayerRows", "Observation", "alpha_of", "rows_of_call", "rows_of_weights", "summarise"]

METRICS = ("zero_share", "entropy", "support", "cls_mass")


@dataclass(frozen=True)
class LayerRows:
    """What the sampled rows of one layer look like, each a value for every head.

    Attributes:
        layer: its name in the model.
        keys: how many keys a row has.
        zero_share: share of weights that are exactly zero.
        entropy: mean over rows, nats; log(keys) is uniform attention.
        support: mean number of weights above zero.
        cls_mass: weight that [CLS] gives to patches; the rest goes to itself and to registers.
        alpha: entmax exponent (1 softmax, 1.5 entmax15, 2 sparsemax); None of a normalizer that has none.
    """

    layer: str
    keys: int
    zero_share: tuple[float, ...]
    entropy: tuple[float, ...]
    support: tuple[float, ...]
    cls_mass: tuple[float, ...]
    alpha: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Observation:
    """What a ``Monitor`` saw in one training step.

    Attributes:
        step: steps that had been made before it.
        spec: what the model is patched with.
        layers: in the order in which they ran.
    """

    step: int
    spec: str
    layers: tuple[LayerRows, ...]

    def means(self) -> dict[str, float]:
        """Means over all layers and heads: zero_share, entropy, support, cls_mass, and alpha where there is one."""
        names = [*METRICS, *(["alpha"] if all(layer.alpha is not None for layer in self.layers) else [])]
        values = {name: [value for layer in self.layers for value in getattr(layer, name)] for name in names}
        return {name: sum(found) / len(found) for name, found in values.items()}


def rows_of_call(call: AttentionCall, images: int, rows: int) -> Tensor:
    """Weights ``[b, H, r, S]``, b ≤ images and r ≤ rows, as ``call`` gives them; the first row is [CLS]'s.

    They are computed from the same query and key, in float32 or better, apart from whatever kernel runs the call. Of
    a packed batch it is the first sequences of equal length.
    """
    query, key = call.query.detach(), call.key.detach()
    mask = None if call.attn_mask is None else call.attn_mask.detach()
    if call.lengths is not None:
        length = call.lengths[0]
        count = next((i for i, other in enumerate(call.lengths) if other != length), len(call.lengths))
        count = min(count, images)
        query, key = (
            t[..., : count * length, :].unflatten(-2, (count, length)).transpose(-4, -3).flatten(0, -4)
            for t in (query, key)
        )
        mask = None
    query, key = (_batch(t, images) for t in (query, key))
    chosen = _rows(query.shape[-2], rows, query.device)
    if call.is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        mask = mask.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])[..., chosen, :]
        mask = mask if mask.dim() < 4 else _batch(mask, images)
    # Under autocast the product would be rounded to half precision, which no kernel of entmax does.
    with torch.autocast(query.device.type, enabled=False):
        query, key = (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in (query, key))
        few = replace(
            call, query=query[..., chosen, :], key=key, attn_mask=mask, lengths=None, is_causal=False, dropout_p=0.0
        )
        return attention_weights(few)


def rows_of_weights(weights: Tensor, heads: int | None, images: int, rows: int) -> Tensor:
    """The same of weights that the layer's own code computes, ``[B, H, N, S]``, or ``[B·heads, N, S]``."""
    weights = weights.detach()
    weights = weights.unflatten(0, (-1, heads)) if heads is not None else weights
    weights = _batch(weights, images)
    return weights[..., _rows(weights.shape[-2], rows, weights.device), :]


def summarise(weights: Tensor, prefix: int) -> Tensor:
    """``METRICS`` of weights ``[b, H, r, S]``, the first row [CLS]'s: ``[4, H]`` float32 on their device.

    Args:
        prefix: tokens before the patches.
    """
    weights = weights.float()
    support = (weights > 0).sum(-1).float().mean(dim=(0, 2))
    return torch.stack(
        [
            1 - support / weights.shape[-1],
            torch.special.entr(weights).sum(-1).mean(dim=(0, 2)),
            support,
            weights[:, :, 0, prefix:].sum(-1).mean(0),
        ]
    )


def alpha_of(alpha: Any, heads: int) -> Tensor | None:
    """``[H]`` of an exponent as a call has it: a number, a tensor ``[H]``, or None."""
    if isinstance(alpha, Tensor):
        return alpha.detach().float()
    return None if alpha is None else torch.full((heads,), float(alpha))


def _batch(tensor: Tensor, images: int) -> Tensor:
    """``[..., H, N, D]`` to ``[b, H, N, D]`` with b ≤ images."""
    while tensor.dim() < 4:
        tensor = tensor.unsqueeze(0)
    return tensor.flatten(0, -4)[:images]


def _rows(count: int, wanted: int, device: torch.device) -> Tensor:
    """Evenly spaced, without random numbers: those are the trainer's."""
    return torch.linspace(0, count - 1, min(count, wanted), device=device).long()
