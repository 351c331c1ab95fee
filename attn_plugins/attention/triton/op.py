"""The kernels as torch operators: what torch.compile, FSDP, checkpointing and autograd see."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .launch import Problem, backward, forward, token_major

__all__ = ["entmax_attention"]


# torch reads the operators' schemas from these annotations, before 2.5 only from types: no postponed evaluation here.
@torch.library.custom_op("attn_plugins::entmax_attention", mutates_args=())
def entmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: float,
    alphas: Tensor | None,
    key_mask: Tensor | None,
    lengths: Sequence[int] | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``entmax(scale * q k^T) v`` by the fused kernels.

    Args:
        q, k, v: ``[B, H, N, D]``, ``[B, H, S, D]``, ``[B, H, S, Dv]``, one of fp16, bf16, fp32; last stride 1.
        alpha: 1.5 or 2.0; not read if ``alphas`` is given.
        alphas: ``[H]`` float32, each in (1, 2].
        key_mask: ``[B, S]`` uint8, contiguous; zero hides a key.
        lengths: of packed sequences, which sum to N = S.
        causal: query i sees keys 0..i.
        scale: factor on the scores.

    Returns:
        Output ``[B, H, N, Dv]`` and thresholds ``[B, H, N]`` float32, which carry no gradient.
    """
    return forward(_problem(q, k, v, alpha, alphas, key_mask, lengths, causal, scale))


@torch.library.custom_op("attn_plugins::entmax_attention_backward", mutates_args=())
def entmax_attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    taus: Tensor,
    alpha: float,
    alphas: Tensor | None,
    key_mask: Tensor | None,
    lengths: Sequence[int] | None,
    causal: bool,
    scale: float,
    alpha_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and alphas (an empty tensor unless ``alpha_grad``)."""
    problem = _problem(q, k, v, alpha, alphas, key_mask, lengths, causal, scale)
    dq, dk, dv, dalphas = backward(problem, out, taus, dout, alpha_grad)
    return dq, dk, dv, taus.new_empty(0) if dalphas is None else dalphas


def _problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: float,
    alphas: Tensor | None,
    key_mask: Tensor | None,
    lengths: Sequence[int] | None,
    causal: bool,
    scale: float,
) -> Problem:
    packed = None if lengths is None else tuple(n for n in lengths if n > 0)
    return Problem(q, k, v, alpha, alphas, key_mask, packed, causal, scale)


@entmax_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out = token_major((*q.shape[:-1], v.shape[-1]), v)
    return out, q.new_empty(q.shape[:-1], dtype=torch.float32)


@entmax_attention_backward.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, taus: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (token_major(t.shape, t) for t in (q, k, v))
    return dq, dk, dv, taus.new_empty(q.shape[1] if rest[-1] else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, alpha, alphas, key_mask, lengths, causal, scale = inputs
    ctx.save_for_backward(q, k, v, *output, alphas, key_mask)
    ctx.rest = alpha, lengths, causal, scale
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 9
    q, k, v, out, taus, alphas, key_mask = ctx.saved_tensors
    alpha, lengths, causal, scale = ctx.rest
    alpha_grad = ctx.needs_input_grad[4]
    dq, dk, dv, dalphas = entmax_attention_backward(
        dout, q, k, v, out, taus, alpha, alphas, key_mask, lengths, causal, scale, alpha_grad
    )
    return dq, dk, dv, None, dalphas if alpha_grad else None, None, None, None, None


entmax_attention.register_autograd(_backward, setup_context=_setup)
