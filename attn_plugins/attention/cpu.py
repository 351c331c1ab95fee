"""The entmax family on a CPU: scores, threshold and products of a head stay in cache (``native/attention.c``).

The forward keeps two numbers per query for the backward, never the weights. On an AVX-512 machine the compiled
products are also faster than the BLAS inside torch, so this outruns torch's own softmax kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import native
from ..functional.solver import FLOAT32_ALPHAS, takes_alpha
from ..native import attention as kernel
from .backend import Backend
from .call import AttentionCall

__all__ = ["BACKEND", "run", "unsupported"]


def unsupported(call: AttentionCall) -> str | None:
    """Why the kernel cannot run this call, or None."""
    tensors = (call.query, call.key, call.value)
    alpha = call.alpha
    if any(t.device.type != "cpu" for t in tensors):
        return "it runs on CPU tensors only"
    if not isinstance(alpha, Tensor) and (alpha is None or not takes_alpha(alpha)):
        return f"it computes entmax with {FLOAT32_ALPHAS[0]} <= alpha <= {FLOAT32_ALPHAS[1]} only"
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
    """Output ``[..., H, N, Dv]``.

    Raises:
        ValueError: query, key and value do not fit together, or alpha has not one value per head.
    """
    q, k, v, mask = call.query, call.key, call.value, call.attn_mask
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"query [.., N, D], key [.., S, D] and value [.., S, Dv] do not fit together: {shapes}")
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    heads = lead[-1] if lead else 1
    alpha = call.alpha
    assert alpha is not None  # unsupported() refuses it
    if isinstance(alpha, Tensor):
        alpha = alpha.float()
        if alpha.shape != (heads,):
            raise ValueError(f"alpha of shape {tuple(alpha.shape)} is not one value for each of {heads} heads")
    else:
        alpha = torch.full((heads,), alpha, dtype=torch.float32, device="cpu")

    def four_dims(tensor: Tensor) -> Tensor:
        return tensor.expand(*lead, *tensor.shape[-2:]).reshape(-1, heads, *tensor.shape[-2:])

    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
        mask = four_dims(mask.float().expand(*mask.shape[:-2], q.shape[-2], k.shape[-2]))
    out: Tensor
    out, _ = _Attention.apply(four_dims(q), four_dims(k), four_dims(v), alpha, mask, call.is_causal, call.scale)
    return out.reshape(*lead, *out.shape[-2:])


class _Attention(torch.autograd.Function):
    """``native.attention.attention`` with its gradient, also under ``torch.func``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, alpha: Tensor, mask: Tensor | None, is_causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = kernel.attention(query, key, value, alpha, mask, is_causal, scale)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.is_causal, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        want_alpha = ctx.needs_input_grad[3]
        dq, dk, dv, by_head = _AttentionBackward.apply(grad, *ctx.saved_tensors, ctx.is_causal, ctx.scale, want_alpha)
        return dq, dk, dv, by_head.sum(0) if want_alpha else None, None, None, None


class _AttentionBackward(torch.autograd.Function):
    """``native.attention.attention_backward``, which has no gradient itself, as torch's own kernels have none."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
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
        found: tuple[Tensor, Tensor, Tensor, Tensor] = kernel.attention_backward(
            grad, query, key, value, alpha, mask, stats, is_causal, scale, alpha_grad
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept: there is no second backward."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("the CPU kernel is differentiable once; for second derivatives use backend='reference'")


BACKEND = Backend("cpu", run, unsupported)
