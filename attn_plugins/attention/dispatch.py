"""``attention``: picks the backend by device, dtype, shape, mask and normalizer, and says so."""

from __future__ import annotations

import functools
import warnings
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ..functional import plain
from ..torch_names import forward_mode, refuse_context_parallel, refuse_sharded
from . import cpu, jagged, proxies, reference, sdpa, triton
from .backend import BACKENDS, Backend, register_backend
from .call import AttentionCall, NormalizerLike, default_scale, resolve_normalizer, split_mask
from .counting import layer, note_answer, observing, tell_watchers
from .packed import run_packed
from .scaling import unscaled

__all__ = ["attention", "choose_backend"]

for _module in (reference, triton, cpu, sdpa):  # the last one registered is asked first
    register_backend(_module.BACKEND)


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    normalizer: NormalizerLike = "softmax",
    backend: str = "auto",
    return_weights: Literal[False] = False,
) -> Tensor: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    normalizer: NormalizerLike = "softmax",
    backend: str = "auto",
    return_weights: Literal[True],
) -> tuple[Tensor, Tensor]: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    normalizer: NormalizerLike = "softmax",
    backend: str = "auto",
    return_weights: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    normalizer: NormalizerLike = "softmax",
    backend: str = "auto",
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention with any normalizer: normalizer(scale * Q K^T + mask) V.

    Arguments, broadcasting and the meaning of masks are those of ``F.scaled_dot_product_attention``, which
    it equals with ``normalizer="softmax"``.

    Args:
        query: ``[..., H, N, D]``.
        key: ``[..., H, S, D]``.
        value: ``[..., H, S, Dv]``.
        attn_mask: broadcasts to ``[..., H, N, S]``: bool (True takes part) or float (added to the scores). Or a
            packed batch: an xformers ``BlockDiagonalMask`` or a list of sequence lengths that sum to N = S;
            cross-sequence scores are then never computed.
        dropout_p: probability of dropping a weight; applied whenever it is > 0, as in torch.
        is_causal: query i sees keys 0..i; not together with ``attn_mask``.
        scale: factor on the scores, 1/sqrt(D) if None.
        enable_gqa: key and value may have fewer heads, each shared by H / H_kv query heads.
        normalizer: registered name or spec string ("entmax:alpha=1.3"), ``Normalizer``, a module such as
            ``EntmaxAlpha``, or any callable ``(scores, dim=-1) -> weights``.
        backend: "auto", or the name of one to insist on: one of ``attn_plugins.register_backend``'s, or "sdpa",
            "cpu", "triton", "reference", which is the order in which "auto" asks them; those registered come first.
        return_weights: also return the weights ``[..., H, N, S]`` (before dropout); not for packed batches.

    Returns:
        ``[..., H, N, Dv]``, or ``(output, weights)``.

    Raises:
        UnknownPluginError: the normalizer's name is not registered.
        UnsupportedModelError: query, key or value are spread over several processes, or this is inside torch's
            ``context_parallel``.
        ValueError: an unknown backend, or one that cannot run this call; masks that contradict or have another dtype;
            heads that cannot be shared.
    """
    refuse_context_parallel()
    watched = None
    if not torch.compiler.is_compiling():
        refuse_sharded(query, key, value)
        note_answer()
        watched = observing()
    function = resolve_normalizer(normalizer)
    if proxies.is_proxy(query):
        call = AttentionCall(
            *(query, key, value, function, getattr(function, "alpha", None), attn_mask, None, dropout_p, is_causal),
            query.shape[-1] ** -0.5 if scale is None else scale,
        )
        return proxies.attention(unscaled(call), enable_gqa, return_weights)
    if query.is_nested or key.is_nested:
        if return_weights:
            raise ValueError("return_weights is not available for nested tensors: their weights have no common shape")
        options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
        options |= {"enable_gqa": enable_gqa, "normalizer": function, "backend": backend}
        return jagged.attention(query, key, value, attn_mask, functools.partial(attention, **options))
    mask, lengths = split_mask(attn_mask, query, key)
    if is_causal and mask is not None:
        raise ValueError("attn_mask and is_causal=True exclude each other; fold the causal mask into attn_mask")
    if enable_gqa:
        heads, key_heads = plain.sizes(query)[-3], plain.sizes(key)[-3]
        if heads % key_heads:
            raise ValueError(f"enable_gqa: {heads} query heads are no multiple of {key_heads} key heads")
        if heads != key_heads:
            key, value = (t.repeat_interleave(heads // key_heads, -3) for t in (key, value))
    call = AttentionCall(
        query,
        key,
        value,
        function,
        getattr(function, "alpha", None),
        mask,
        lengths,
        dropout_p,
        is_causal,
        default_scale(query) if scale is None else scale,
    )
    call = unscaled(call)
    if not torch.compiler.is_compiling():
        tell_watchers(layer(), call=call)
    if return_weights:
        if lengths is not None:
            raise ValueError("return_weights is not available for packed batches: their weights have no common shape")
        weights = reference.attention_weights(call)
        if watched is not None:
            watched(layer(), backend=reference.BACKEND.name, weights=weights)
        return reference.weighted_values(call, weights), weights
    output = run_call(call, backend)
    if watched is not None:
        watched(layer(), backend=choose_backend(call, backend).name, **_compared(call, output))
    return output


def _compared(call: AttentionCall, output: Tensor) -> dict[str, Any]:
    """What an observer is told of a call: weights ``[..., H, N, S]``, and output and reference ``[..., H, N, Dv]``."""
    if call.lengths is not None:
        return {"output": output, "reference": run_packed(call, reference.run)}
    weights = reference.attention_weights(call)
    return {"weights": weights, "output": output, "reference": reference.weighted_values(call, weights)}


def run_call(call: AttentionCall, backend: str = "auto") -> Tensor:
    """Run ``call`` on the backend that fits, or on the one that is named."""
    chosen = choose_backend(call, backend)
    if call.lengths is not None and not chosen.packed:
        return run_packed(call, functools.partial(run_call, backend=backend))
    return chosen.run(call)


def choose_backend(call: AttentionCall, backend: str = "auto") -> Backend:
    """The backend that runs ``call``.

    Raises:
        ValueError: ``backend`` is unknown, or cannot run this call (with its reason).
    """
    _ensure_loaded()
    if backend != "auto":
        if backend not in BACKENDS:
            names = ", ".join(known.name for known in reversed(BACKENDS.values()))
            raise ValueError(f"unknown backend {backend!r}; choose auto or one of {names}")
        chosen = BACKENDS.get(backend)
        reason = chosen.unsupported(call)
        if reason is not None:
            raise ValueError(f"backend {backend!r} cannot run this call: {reason}; use backend='auto'")
        return chosen
    if plain.wanted():  # torch's own softmax kernel has no forward-mode derivative
        return reference.BACKEND if forward_mode() or sdpa.unsupported(call) else sdpa.BACKEND
    for chosen in reversed(BACKENDS.values()):
        if chosen.unsupported(call) is None:
            if chosen.run is reference.run and call.alpha is not None and call.query.device.type not in ("cpu", "meta"):
                _announce(f"attention runs without a fused kernel: triton cannot, {triton.unsupported(call)}")
            return chosen
    raise AssertionError("the reference backend runs everything")


def _ensure_loaded() -> bool:
    BACKENDS.load()
    return True


# What torch.compiler.assume_constant_result sets: entry points cannot be traced.
_ensure_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=256)
def _announce(message: str) -> None:
    warnings.warn(message, stacklevel=3)


# What torch.compiler.assume_constant_result sets: torch.compile says it once while it traces.
_announce._dynamo_marked_constant = True  # type: ignore[attr-defined]
