"""``attention.c`` as torch operators: what ``torch.compile`` sees and ``torch.func.vmap`` batches."""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from ..torch_names import register_vmap
from . import build

__all__ = ["attention", "attention_backward"]


# torch reads the operators' schemas from these annotations, before 2.5 only from types: no postponed evaluation here.
@torch.library.custom_op("attn_plugins::cpu_attention", mutates_args=(), device_types="cpu")
def attention(
    query: Tensor, key: Tensor, value: Tensor, alpha: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, N, Dv]`` and ``[2, B, H, N]``, each row's maximum and threshold.

    query: ``[B, H, N, D]``, key: ``[B, H, S, D]``, value: ``[B, H, S, Dv]``, alpha: ``[H]`` float32,
    mask: ``[B, H, N, S]`` float32 to add, or None.
    """
    q, k, v = (_readable(t) for t in (query, key, value))
    out, stats = _empty_output(q, v), q.new_empty((2, *q.shape[:-1]), dtype=torch.float32)
    alpha = alpha.contiguous()
    problem = _problem(q, k, v, alpha, is_causal, scale)
    tensors = (_view(t) for t in (q, k, v, mask, out))
    _check(_library().attention_forward(ctypes.byref(problem), *tensors, stats.data_ptr()))
    return out, stats


@attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, alpha: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    return _empty_output(query, value), query.new_empty((2, *query.shape[:-1]), dtype=torch.float32)


@torch.library.custom_op("attn_plugins::cpu_attention_backward", mutates_args=(), device_types="cpu")
def attention_backward(
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
    """Gradients of query, key, value, and of alpha ``[B, H]``, to be summed (zeros unless ``alpha_grad``)."""
    q, k, v, g = (_readable(t) for t in (query, key, value, grad))
    dq, dk, dv = (t.new_empty(t.shape) for t in (q, k, v))
    alpha = alpha.contiguous()
    by_head = alpha.new_zeros(q.shape[:2])
    problem = _problem(q, k, v, alpha, is_causal, scale)
    before, after = [_view(t) for t in (q, k, v, mask, g)], [_view(t) for t in (dq, dk, dv)]
    pointer = by_head.data_ptr() if alpha_grad else None
    _check(_library().attention_backward(ctypes.byref(problem), *before, stats.data_ptr(), *after, pointer))
    return dq, dk, dv, by_head


@attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, alpha: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value))
    return dq, dk, dv, alpha.new_empty(query.shape[:2])


@register_vmap(attention)
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    alpha: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    q, k, v, mask = _fold(info, (*in_dims[:3], in_dims[4]), (query, key, value, mask))
    out, stats = attention(q, k, v, _shared(alpha, in_dims[3]), mask, is_causal, scale)
    return (out.unflatten(0, (info.batch_size, -1)), stats.unflatten(1, (info.batch_size, -1))), (0, 1)


@register_vmap(attention_backward)
def _(
    info: Any,
    in_dims: tuple[int | None, ...],
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
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    g, q, k, v, mask = _fold(info, (*in_dims[:4], in_dims[5]), (grad, query, key, value, mask))
    assert in_dims[6] is not None, "what the forward kept of a batch is a batch"
    stats = stats.movedim(in_dims[6], 1).flatten(1, 2)
    grads = attention_backward(g, q, k, v, _shared(alpha, in_dims[4]), mask, stats, is_causal, scale, alpha_grad)
    return tuple(t.unflatten(0, (info.batch_size, -1)) for t in grads), (0, 0, 0, 0)


def _fold(info: Any, dims: tuple[int | None, ...], tensors: tuple[Any, ...]) -> list[Any]:
    """vmap's dimension joins the batch: attention knows no other relation between the elements of a batch."""
    folded = []
    for dim, tensor in zip(dims, tensors, strict=True):
        if tensor is not None:
            tensor = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            tensor = tensor.flatten(0, 1)
        folded.append(tensor)
    return folded


def _shared(alpha: Tensor, dim: int | None) -> Tensor:
    if dim is not None:
        raise ValueError("torch.func.vmap over alpha is not possible in this kernel; use backend='reference'")
    return alpha


def _empty_output(query: Tensor, value: Tensor) -> Tensor:
    """``[B, H, N, Dv]`` over memory in the order B, N, H, Dv: joining the heads afterwards copies nothing."""
    b, h, n, _ = query.shape
    return value.new_empty((b, n, h, value.shape[-1])).transpose(1, 2)


def _readable(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""``enum dtype`` in pack.h: the kernel itself widens what it reads, so that no copies are made of whole tensors."""


class _Tensor(ctypes.Structure):
    """``tensor`` in pack.h."""

    _fields_ = [("at", ctypes.c_void_p), *((name, ctypes.c_int64) for name in (*"bhns", "dtype"))]


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
    fields = (None, 0, 0, 0, 0, 0) if tensor is None else (tensor.data_ptr(), *tensor.stride(), _DTYPES[tensor.dtype])
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
    return declare(build.load())


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the arguments of attention.c's functions."""
    pointer = ctypes.c_void_p
    library.attention_forward.argtypes = [pointer] * 7
    library.attention_backward.argtypes = [pointer] * 11
    return library
