"""Attention functions that are not torch's: xformers' and flash-attn's are answered, others are known by name.

They are Python functions that launch kernels, so no mode of torch sees them. A function that is answered asks, from
the moment on that a layer which calls it is patched, whether it runs inside a patched layer, and does what it always
did where it does not. Every alias of it (``from xformers.ops import ...``, a ``partial``, an attribute) is the
same function and is answered alike.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from ..attention import attention
from ..errors import UnsupportedModelError

__all__ = ["ANSWERS", "FUSED_ROOTS", "answer_functions", "fused_name"]

FUSED_ROOTS = {
    *("xformers", "flash_attn", "flash_attn_interface", "sageattention", "natten", "spas_sage_attn", "adasplash"),
    *("block_sparse_attn", "flash_attn_2_cuda", "flash_attn_3", "flash_attn_cuda"),
}
_FLEX = "torch.nn.attention.flex_attention"
_NATTEN = ("na1d", "na2d", "na3d", "natten")


def fused_name(value: Any) -> tuple[str, str] | None:
    """``("call" or "fused", name)`` of a fused attention function that is answered or not; None for anything else."""
    if not callable(value) or isinstance(value, type):
        return None
    name = str(getattr(value, "__name__", type(value).__name__))
    if "attention" not in name and "attn" not in name and not name.startswith(_NATTEN):
        return None
    home = str(getattr(value, "__module__", "") or "")
    if home.partition(".")[0] not in FUSED_ROOTS and home != _FLEX:
        owners = (key for key in list(sys.modules) if key.partition(".")[0] in FUSED_ROOTS or key == _FLEX)
        home = next((key for key in owners if getattr(sys.modules[key], name, None) is value), "")
        if not home:
            return None
    if name in ANSWERS and _plain(value) is not None:
        return "call", f"{home.partition('.')[0]}'s {name}"
    return "fused", f"{home}.{name}"


def _plain(value: Any) -> types.FunctionType | None:
    """The function whose code can be exchanged: Python's, and without variables of a function around it."""
    value = inspect.unwrap(value)
    return value if isinstance(value, types.FunctionType) and value.__closure__ is None else None


# --- xformers


def _memory_efficient_attention(
    normalizer: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Any = None,
    p: float = 0.0,
    scale: float | None = None,
    **options: Any,
) -> Tensor:
    """``query: [B, N, H, D]``, ``key, value: [B, S, H, D]`` (or without H) to ``[B, N, H, D]``, as xformers has it.

    attn_bias: a tensor that is added ``[B, H, N, S]``, a ``BlockDiagonalMask`` or another of xformers' biases.
    """
    if query.dim() == 3:
        bias = attn_bias[:, None] if isinstance(attn_bias, Tensor) and attn_bias.dim() == 3 else attn_bias
        q, k, v = (t.unsqueeze(2) for t in (query, key, value))
        return _memory_efficient_attention(normalizer, q, k, v, bias, p, scale).squeeze(2)
    q, k, v = (t.movedim(1, -2) for t in (query, key, value))
    causal = type(attn_bias).__name__ == "LowerTriangularMask" or (
        isinstance(attn_bias, type) and attn_bias.__name__ == "LowerTriangularMask"
    )
    bias = None if causal else _bias(attn_bias, q, k)
    out = attention(q, k, v, bias, dropout_p=p, is_causal=causal, scale=scale, normalizer=normalizer)
    return out.movedim(-2, 1).contiguous()


def _bias(bias: Any, q: Tensor, k: Tensor) -> Any:
    if bias is None or isinstance(bias, (Tensor, list, tuple)):
        return bias
    if type(bias).__name__ == "BlockDiagonalMask":
        lengths = [info.seqstart_py for info in (bias.q_seqinfo, bias.k_seqinfo)]
        if lengths[0] == lengths[1]:
            return bias  # sequence by sequence, without scores between them
    if not hasattr(bias, "materialize"):
        raise UnsupportedModelError(
            f"an xformers bias of type {type(bias).__name__} cannot be read: pass a tensor, a BlockDiagonalMask or "
            "LowerTriangularMask, or one that has materialize()"
        )
    dense: Tensor = bias.materialize((*q.shape[:-1], k.shape[-2]), dtype=q.dtype, device=q.device)
    return dense


# --- flash-attn


def _flash_attn_func(
    normalizer: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    **options: Any,
) -> Tensor:
    """``q: [B, N, H, D]``, ``k, v: [B, S, H_kv, D]`` to ``[B, N, H, D]``; causal aligns the ends."""
    refused = {
        "window_size": tuple(window_size) != (-1, -1),
        "softcap": softcap != 0.0,
        "alibi_slopes": alibi_slopes is not None,
        "return_attn_probs": return_attn_probs,
        "causal with fewer queries than keys": causal and q.shape[1] != k.shape[1],
        **{name: value is not None for name, value in options.items()},
    }
    if any(refused.values()):
        asked = ", ".join(name for name, used in refused.items() if used)
        raise UnsupportedModelError(f"flash_attn_func with {asked} cannot be answered; unpatch this layer")
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = attention(
        q, k, v, dropout_p=dropout_p, is_causal=causal, scale=softmax_scale, enable_gqa=True, normalizer=normalizer
    )
    return out.transpose(1, 2).contiguous()


def _flash_attn_qkvpacked_func(normalizer: Any, qkv: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``qkv: [B, N, 3, H, D]`` to ``[B, N, H, D]``."""
    q, k, v = qkv.unbind(2)
    return _flash_attn_func(normalizer, q, k, v, *args, **kwargs)


def _flash_attn_kvpacked_func(normalizer: Any, q: Tensor, kv: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``q: [B, N, H, D]``, ``kv: [B, S, 2, H, D]`` to ``[B, N, H, D]``."""
    k, v = kv.unbind(2)
    return _flash_attn_func(normalizer, q, k, v, *args, **kwargs)


ANSWERS: dict[str, Callable[..., Tensor]] = {
    "memory_efficient_attention": _memory_efficient_attention,
    "flash_attn_func": _flash_attn_func,
    "flash_attn_qkvpacked_func": _flash_attn_qkvpacked_func,
    "flash_attn_kvpacked_func": _flash_attn_kvpacked_func,
}
"""What is called instead of such a function inside a patched layer, with that layer's normalizer in front."""


# --- how a function is made to ask

_ORIGINALS: list[tuple[str, Callable[..., Any]]] = []


def _ask(*args: Any, **kwargs: Any) -> Any:
    from attn_plugins.codebases.fused import _asked

    return _asked("which function", args, kwargs)


def _asked(index: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from .answer import current

    name, original = _ORIGINALS[index]
    site = current()
    return original(*args, **kwargs) if site is None else site.function(name, original, args, kwargs)


def answer_functions() -> None:
    """Let ``torch.utils.checkpoint.checkpoint`` and the functions of ``ANSWERS`` that are loaded now ask first."""
    redirect("checkpoint", torch.utils.checkpoint.checkpoint)
    for module_name in [key for key in list(sys.modules) if key.partition(".")[0] in FUSED_ROOTS]:
        for name in ANSWERS:
            value = vars(sys.modules[module_name]).get(name)
            if value is not None and (fused_name(value) or ("",))[0] == "call":
                redirect(name, value)


def redirect(name: str, value: Any) -> None:
    """Make a Python function, under all its aliases, ask for a patched layer that it runs in."""
    function = _plain(value)
    if function is None or hasattr(function, "_attn_plugins_original"):
        return
    code = function.__code__
    original = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    original.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(original, function)
    constants = tuple(len(_ORIGINALS) if c == "which function" else c for c in _ask.__code__.co_consts)
    _ORIGINALS.append((name, original))
    vars(function)["_attn_plugins_original"] = original
    vars(function)["__signature__"] = inspect.signature(original)
    function.__defaults__, function.__kwdefaults__ = None, None
    function.__code__ = _ask.__code__.replace(co_consts=constants, co_name=code.co_name)
