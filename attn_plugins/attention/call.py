"""One attention call, as every backend receives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import Normalizer, bind
from ..functional.plain import sizes
from ..registry import NORMALIZERS

__all__ = ["AttentionCall", "resolve_normalizer", "split_mask"]

NormalizerLike = str | Normalizer | Callable[..., Tensor]


@dataclass(frozen=True)
class AttentionCall:
    """Arguments of ``F.scaled_dot_product_attention`` and the normalizer.

    Attributes:
        query: ``[..., H, N, D]``.
        key: ``[..., H, S, D]``.
        value: ``[..., H, S, Dv]``.
        normalizer: callable ``(scores, dim=-1) -> weights``.
        alpha: entmax exponent of the normalizer, for kernels: a number (1.0 softmax, 1.5 entmax15, 2.0
            sparsemax), a tensor ``[H]`` (learnable), or None if it is not of that family.
        attn_mask: broadcasts to ``[..., H, N, S]``: bool (True takes part) or float (added), or None.
        lengths: packed block-diagonal batch: sequence lengths that sum to N = S, or None.
        dropout_p: share of weights that is dropped.
        is_causal: query i sees keys 0..i.
        scale: factor on the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    normalizer: Callable[..., Tensor]
    alpha: float | Tensor | None = None
    attn_mask: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float = 1.0


def default_scale(query: Tensor) -> float:
    """1/sqrt(D), as ``F.scaled_dot_product_attention`` has it."""
    return 1.0 / math.sqrt(sizes(query)[-1])


_BOUND: dict[str, Normalizer] = {}
_MOST_BOUND = 256  # a sweep over alpha has a name for every value
NORMALIZERS.caches.append(_BOUND.clear)


def _ensure_bound(name: str) -> bool:
    # torch.compile runs this once while it traces: looking names up needs entry points, which it cannot trace.
    if name not in _BOUND:
        bound = bind(name)
        while len(_BOUND) >= _MOST_BOUND:
            del _BOUND[next(iter(_BOUND))]
        _BOUND[name] = bound
    return True


# What torch.compiler.assume_constant_result sets; calling that would import all of dynamo with this package.
_ensure_bound._dynamo_marked_constant = True  # type: ignore[attr-defined]


def resolve_normalizer(normalizer: NormalizerLike) -> Callable[..., Tensor]:
    """A name or spec string becomes a ``Normalizer``; anything callable is used as it is.

    Raises:
        UnknownPluginError: a name that is not registered.
        ValueError: neither a name nor callable.
    """
    if isinstance(normalizer, str):
        _ensure_bound(normalizer)
        return _BOUND[normalizer]
    if not callable(normalizer):
        raise ValueError(f"normalizer is a name or a callable (scores, dim=-1) -> weights, not {normalizer!r}")
    return _inside(normalizer)


def _inside(normalizer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What peft's ``modules_to_save`` has put a wrapper around: the copy that is trained, or the original.

    The wrapper has that one's attributes but not its class, by which kernels know what a normalizer computes.
    """
    copies = normalizer._modules.get("modules_to_save") if isinstance(normalizer, nn.Module) else None
    if not isinstance(copies, nn.ModuleDict):
        return normalizer
    wrapper: Any = normalizer
    active = () if wrapper.disable_adapters else wrapper.active_adapters[:1]
    chosen: list[Callable[..., Tensor]] = [copies[name] for name in active if name in copies]
    return (chosen or [wrapper.original_module])[0]


def split_mask(attn_mask: Any, query: Tensor, key: Tensor) -> tuple[Tensor | None, tuple[int, ...] | None]:
    """Tell a dense mask from a packed batch.

    Args:
        attn_mask: None, a tensor, an xformers ``BlockDiagonalMask``, or a list of sequence lengths.
        query: ``[..., N, D]``.
        key: ``[..., S, D]``.

    Returns:
        ``(mask, None)`` or ``(None, lengths)``.

    Raises:
        ValueError: lengths that do not cover the tokens, or a mask of another type or dtype.
    """
    if isinstance(attn_mask, Tensor) and attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise ValueError(
            f"attn_mask is bool (True takes part) or floating point (added), not {attn_mask.dtype}; use mask.bool(), "
            "or mask.tolist() if these are the lengths of a packed batch"
        )
    if attn_mask is None or isinstance(attn_mask, Tensor):
        return attn_mask, None
    if hasattr(attn_mask, "q_seqinfo"):  # xformers' BlockDiagonalMask, without importing xformers
        if type(attn_mask).__name__ != "BlockDiagonalMask":
            raise ValueError(f"of xformers' masks only BlockDiagonalMask is supported, not {type(attn_mask).__name__}")
        lengths, key_lengths = (_lengths(info.seqstart_py) for info in (attn_mask.q_seqinfo, attn_mask.k_seqinfo))
        if lengths != key_lengths:
            raise ValueError(f"packed queries {lengths} and keys {key_lengths} differ; self-attention needs the same")
    elif isinstance(attn_mask, (list, tuple)) and all(isinstance(n, int) for n in attn_mask):
        lengths = tuple(attn_mask)
    else:
        raise ValueError(
            "attn_mask is a tensor, an xformers BlockDiagonalMask or a list of lengths, not "
            f"{type(attn_mask).__name__}: {attn_mask!r}"
        )
    if any(n < 0 for n in lengths) or sum(lengths) != query.shape[-2] or query.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"packed lengths {lengths} sum to {sum(lengths)}, but there are {query.shape[-2]} queries "
            f"and {key.shape[-2]} keys"
        )
    return None, lengths


def _lengths(starts: list[int]) -> tuple[int, ...]:
    return tuple(end - start for start, end in pairwise(starts))
