"""The entmax family on a CPU: scores, threshold and products of a head stay in cache (``native/attention.c``).

The forward keeps two numbers per query for the backward, never the weights.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from .. import native
from .call import AttentionCall

__all__ = ["NAME", "run", "unsupported"]

NAME = "cpu"


def unsupported(call: AttentionCall) -> str | None:
    """Why the kernel cannot run this call, or None."""
    tensors = (call.query, call.key, call.value)
    alpha = call.alpha
    if any(t.device.type != "cpu" for t in tensors):
        return "it runs on CPU tensors only"
    if alpha is None or (not isinstance(alpha, Tensor) and not 1 < alpha <= 2):
        return "it computes entmax with 1 < alpha <= 2 only"
    if any(t.dtype not in (torch.float32, torch.bfloat16, torch.float16) for t in tensors):
        return "it computes in float32"
    if call.dropout_p > 0:
        return "it has no dropout"
    if call.attn_mask is not None and call.attn_mask.requires_grad and torch.is_grad_enabled():
        return "it has no gradient for the mask"
    if any(t.numel() == 0 for t in tensors):
        return "there is nothing to compute"
    return native.unavailable()


def run(call: AttentionCall) -> Tensor:
    """Output ``[..., H, N, Dv]``."""
    queries, keys = call.query.shape[-2], call.key.shape[-2]
    lead = torch.broadcast_shapes(*(t.shape[:-2] for t in (call.query, call.key, call.value)))
    heads = lead[-1] if lead else 1

    def four_dims(tensor: Tensor) -> Tensor:
        return tensor.expand(*lead, *tensor.shape[-2:]).reshape(-1, heads, *tensor.shape[-2:])

    mask = call.attn_mask
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        mask = four_dims(mask.float().expand(*mask.shape[:-2], queries, keys))
    alpha = call.alpha if isinstance(call.alpha, Tensor) else torch.full((heads,), call.alpha)
    q, k, v = (four_dims(t) for t in (call.query, call.key, call.value))
    out, _ = _attention(q, k, v, alpha.float(), mask, call.is_causal, call.scale)
    return out.reshape(*lead, queries, call.value.shape[-1])


@torch.library.custom_op("attn_plugins::cpu_attention", mutates_args=(), device_types="cpu")
def _attention(
    query: Tensor, key: Tensor, value: Tensor, alpha: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, N, Dv]`` and ``[2, B, H, N]``, each row's maximum and threshold.

    query: ``[B, H, N, D]``, key: ``[B, H, S, D]``, value: ``[B, H, S, Dv]``, alpha: ``[H]`` float32,
    mask: ``[B, H, N, S]`` float32 to add, or None.
    """
    q, k, v = _float32(query), _float32(key), _float32(value)
    b, h, n, _ = q.shape
    out, stats = _empty_output(query, value, torch.float32), torch.empty(2, b, h, n)
    alpha = alpha.contiguous()
    problem = _problem(q, k, v, alpha, is_causal, scale)
    tensors = (_view(t) for t in (q, k, v, mask, out))
    _check(_library().attention_forward(ctypes.byref(problem), *tensors, stats.data_ptr()))
    return out.to(value.dtype), stats


@_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, alpha: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    out = _empty_output(query, value, value.dtype)
    return out, query.new_empty((2, *query.shape[:-1]), dtype=torch.float32)


@torch.library.custom_op("attn_plugins::cpu_attention_backward", mutates_args=(), device_types="cpu")
def _attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    mask: Tensor | None,
    stats: Tensor,
    is_causal: bool,
    scale: float,
    alpha_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, and of alpha ``[H]`` (zeros unless ``alpha_grad``)."""
    q, k, v, g = (_float32(t) for t in (query, key, value, grad))
    dq, dk, dv = (torch.empty(t.shape) for t in (q, k, v))
    alpha = alpha.contiguous()
    by_head = torch.zeros(q.shape[:2])
    problem = _problem(q, k, v, alpha, is_causal, scale)
    before, after = [_view(t) for t in (q, k, v, mask, g)], [_view(t) for t in (dq, dk, dv)]
    pointer = by_head.data_ptr() if alpha_grad else None
    _check(_library().attention_backward(ctypes.byref(problem), *before, stats.data_ptr(), *after, pointer))
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), by_head.sum(0)


@_attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, alpha: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value))
    return dq, dk, dv, torch.empty_like(alpha)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.is_causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)


def _grad(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    want_alpha = ctx.needs_input_grad[3]
    dq, dk, dv, dalpha = _attention_backward(grad, *ctx.saved_tensors, ctx.is_causal, ctx.scale, want_alpha)
    return dq, dk, dv, dalpha if want_alpha else None, None, None, None


_attention.register_autograd(_grad, setup_context=_save)


def _empty_output(query: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, H, N, Dv]`` over memory in the order B, N, H, Dv: joining the heads afterwards copies nothing."""
    b, h, n, _ = query.shape
    return torch.empty((b, n, h, value.shape[-1]), dtype=dtype, device=query.device).transpose(1, 2)


def _float32(tensor: Tensor) -> Tensor:
    tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


class _Tensor(ctypes.Structure):
    """``tensor`` in attention.c."""

    _fields_ = [("at", ctypes.c_void_p), *((name, ctypes.c_int64) for name in "bhns")]


class _Problem(ctypes.Structure):
    """``problem`` in attention.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "queries", "keys", "dim", "value_dim")),
        ("scale", ctypes.c_float),
        ("causal", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("alpha", ctypes.c_void_p),
    ]


def _view(tensor: Tensor | None) -> Any:
    fields = (None, 0, 0, 0, 0) if tensor is None else (tensor.data_ptr(), *tensor.stride())
    return ctypes.byref(_Tensor(*fields))


def _problem(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, is_causal: bool, scale: float) -> _Problem:
    b, h, n, d = q.shape
    threads = torch.get_num_threads()
    return _Problem(b, h, n, k.shape[-2], d, v.shape[-1], scale, is_causal, threads, alpha.data_ptr())


def _check(status: int) -> None:
    if status:
        raise MemoryError(f"no memory for the attention kernel's scratch space on {torch.get_num_threads()} threads")


@functools.cache
def _library() -> ctypes.CDLL:
    library = native.load()
    pointer = ctypes.c_void_p
    library.attention_forward.argtypes = [pointer] * 7
    library.attention_backward.argtypes = [pointer] * 11
    return library
