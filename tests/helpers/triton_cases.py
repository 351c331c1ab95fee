"""What the kernels are compared with: the entmax package in float64, on scores that are materialised."""

from collections.abc import Callable
from typing import Any

import entmax
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Relative errors ||out - ref|| / ||ref||. The interpreter rounds to bfloat16 by truncation, twice as coarse as a GPU.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def qkv(
    batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of one projection, ``[B, H, N, D]`` each, as an attention module makes them; leaves that require grad."""
    projected = torch.randn(batch, tokens, 3, heads, dim, device=DEVICE) * scale
    q, k, v = (t.detach().requires_grad_() for t in projected.to(dtype).permute(2, 0, 3, 1, 4).unbind(0))
    return q, k, v


def weights(scores: Tensor, alpha: float) -> Tensor:
    """Entmax of float64 scores ``[..., N, S]`` by the entmax package; rows of -inf are zero."""
    hidden = scores == -torch.inf
    finite = scores.masked_fill(hidden, -1e6)
    if alpha == 1.5:
        p = entmax.entmax15(finite, dim=-1)
    elif alpha == 2.0:
        p = entmax.sparsemax(finite, dim=-1)
    else:
        p = entmax.entmax_bisect(finite, alpha, dim=-1, n_iter=60)
    out: Tensor = p.masked_fill(hidden.all(-1, keepdim=True), 0)
    return out


def expected(
    q: Tensor, k: Tensor, v: Tensor, alpha: float, scale: float | None = None, keep: Tensor | None = None
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Output and the function that gives the gradients of q, k, v for a gradient of the output, all in float64.

    ``keep`` broadcasts to ``[B, H, N, S]``; False hides a key from a query.
    """
    q, k, v = (t.detach().double().requires_grad_() for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    out = weights(scores, alpha) @ v
    return out, lambda grad: torch.autograd.grad(out, (q, k, v), grad.double())


def error(actual: Tensor, reference: Tensor) -> float:
    """``||actual - reference|| / ||reference||``, or the norm itself where the reference is zero."""
    actual, reference = actual.detach().double(), reference.detach()
    norm = reference.norm()
    return float((actual - reference).norm() / torch.where(norm > 1e-9, norm, 1.0))


def check(
    run: Callable[..., Tensor], tensors: tuple[Tensor, Tensor, Tensor], alpha: float, dtype: torch.dtype, **kwargs: Any
) -> Tensor:
    """``run(q, k, v)`` and its gradients equal the reference within the tolerance of ``dtype``."""
    out = run(*tensors)
    reference, gradients = expected(*tensors, alpha, **kwargs)
    grad = torch.randn_like(out)
    errors = [error(out, reference)]
    errors += map(error, torch.autograd.grad(out, tensors, grad), gradients(grad))
    assert all(e < TOLERANCE[dtype] for e in errors), errors
    return out
