"""The entmax family on a GPU: fused Triton kernels that never hold the weights (see README.md beside this file).

Nothing here imports triton; ``op`` does, when the first call runs.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from ...functional.solver import FLOAT32_ALPHAS, takes_alpha
from ..backend import Backend
from ..call import AttentionCall

__all__ = ["BACKEND", "run", "unsupported"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_WIDEST = 128
_OFFSETS = 2**31  # rows of one sequence are addressed with 32 bits


def unsupported(call: AttentionCall) -> str | None:
    """Why the kernels cannot run this call, or None."""
    q, k, v, alpha = call.query, call.key, call.value, call.alpha
    if not isinstance(alpha, Tensor) and (alpha is None or not takes_alpha(alpha)):
        return f"it computes entmax with {FLOAT32_ALPHAS[0]} <= alpha <= {FLOAT32_ALPHAS[1]} only"
    if not q.device == k.device == v.device:
        return f"query, key and value are on {q.device}, {k.device} and {v.device}"
    reason = _unavailable(q.device.type, q.device.index or 0)
    if reason is not None:
        return reason
    if isinstance(alpha, Tensor) and alpha.shape != q.shape[-3:-2]:
        return f"alpha of shape {tuple(alpha.shape)} is not one value for each head of a query {tuple(q.shape)}"
    if any(dtype not in _DTYPES for dtype in _dtypes(call)) or len(set(_dtypes(call))) > 1:
        return f"it takes float16, bfloat16 or float32, the same for all, not {q.dtype}, {k.dtype} and {v.dtype}"
    if call.dropout_p > 0:
        return "it has no dropout"
    if q.dim() < 3 or q.shape[:-2] != k.shape[:-2] or k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1]:
        return f"it takes [.., H, N, D] without broadcasting, not {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    if max(q.shape[-1], v.shape[-1]) > _WIDEST:
        return f"it takes heads up to {_WIDEST} wide, not {max(q.shape[-1], v.shape[-1])}"
    if any(t.numel() == 0 for t in (q, k, v)):
        return "there is nothing to compute"
    if any(t.shape[-2] * t.stride(-2) >= _OFFSETS for t in (q, k, v)):
        return "a sequence spans more than 2^31 elements"
    if call.attn_mask is not None and not _hides_keys(call.attn_mask, q, k):
        return "of masks it takes those that hide keys: bool, the same for every head and query"
    return None


def run(call: AttentionCall) -> Tensor:
    """Output ``[..., H, N, Dv]``, laid out token by token so that merging the heads is a view."""
    from .op import entmax_attention

    *lead, heads, tokens, _ = call.query.shape
    q, k, v = (_four_dims(t) for t in (call.query, call.key, call.value))
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    key_mask = None
    if call.attn_mask is not None:
        keys = call.attn_mask.expand(*lead, heads, tokens, k.shape[-2])[..., 0, 0, :]
        key_mask = keys.reshape(-1, k.shape[-2]).to(torch.uint8).contiguous()
    alphas, alpha = None, call.alpha
    if isinstance(alpha, Tensor):
        alphas, alpha = alpha.float().contiguous(), 0.0
    assert alpha is not None  # unsupported() refuses it
    if alphas is None and alpha not in (1.5, 2.0):
        alphas = torch.full((heads,), alpha, dtype=torch.float32, device=q.device)
    out: Tensor
    out, _ = entmax_attention(q, k, v, alpha, alphas, key_mask, call.lengths, call.is_causal, call.scale)
    return out.reshape(*lead, heads, tokens, v.shape[-1])


def _four_dims(tensor: Tensor) -> Tensor:
    """``[B, H, N, D]`` with a last stride of 1; a view of what a qkv projection gives."""
    tensor = tensor if tensor.dim() == 4 else tensor.reshape(-1, *tensor.shape[-3:])
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _dtypes(call: AttentionCall) -> list[torch.dtype]:
    """Of query, key and value, as they reach the kernels."""
    tensors = (call.query, call.key, call.value)
    device = call.query.device.type
    if torch.is_autocast_enabled(device) and all(t.is_floating_point() for t in tensors):
        return [torch.get_autocast_dtype(device)] * 3
    return [t.dtype for t in tensors]


def _hides_keys(mask: Tensor, query: Tensor, key: Tensor) -> bool:
    """Whether a mask that broadcasts to ``[..., H, N, S]`` is one row for all heads and queries."""
    if mask.dtype != torch.bool or mask.shape[-1] != key.shape[-2]:
        return False
    sizes, strides = mask.shape[-3:-1], mask.stride()[-3:-1]
    return mask.dim() <= query.dim() and all(n == 1 or s == 0 for n, s in zip(sizes, strides, strict=True))


def _unavailable(device: str, index: int) -> str | None:
    """Why no kernel runs on a device, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install 'attn_plugins[cuda]'"
    if device == "cpu":
        # For tests: Triton's interpreter runs the kernels, slowly, on CPU tensors.
        return None if os.environ.get("TRITON_INTERPRET") == "1" else "it runs on CUDA tensors only"
    if device != "cuda":
        return f"it runs on CUDA tensors only, not on {device}"
    capability = torch.cuda.get_device_capability(index)
    return None if capability >= (8, 0) else f"it needs compute capability 8.0, and this GPU has {capability}"


# What torch.compiler.assume_constant_result sets: torch.compile runs this once while it traces.
_unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


BACKEND = Backend("triton", run, unsupported, packed=True)
