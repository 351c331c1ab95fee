"""Forward and backward of attention: our backends beside torch's softmax and the entmax package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import attention
from ..functional import entmax15
from .report import as_dict
from .timing import in_turns

__all__ = ["BASELINE", "NORMALIZERS", "SHAPE", "bench_attention", "check", "peers"]

BASELINE = "softmax (SDPA)"
NORMALIZERS = ("entmax15", "sparsemax", "entmax:alpha=1.25")
SHAPE = (16, 6, 197, 64)
"""Batch, heads, tokens, head dimension: ViT-S/16 at 224 x 224, batch 16."""

Peer = Callable[[Tensor, Tensor, Tensor], Tensor]


def peers(normalizers: Iterable[str] = NORMALIZERS) -> dict[str, Peer]:
    """Functions of query, key, value by name, ``BASELINE`` first; the entmax package joins where installed."""
    found: dict[str, Peer] = {BASELINE: F.scaled_dot_product_attention, "softmax, composed": composed(torch.softmax)}
    for name in normalizers:
        found[name] = bind_backend(name, "auto")
    found["entmax15, our reference"] = bind_backend("entmax15", "reference")
    if importlib.util.find_spec("entmax"):
        import entmax

        found["entmax.entmax15, composed"] = composed(entmax.entmax15)
        found["entmax.entmax_bisect, composed"] = composed(lambda z, dim: entmax.entmax_bisect(z, 1.5, dim))
    return found


def bind_backend(normalizer: str, backend: str) -> Peer:
    """``attn_plugins.attention`` with everything but the tensors chosen."""
    return lambda q, k, v: attention(q, k, v, normalizer=normalizer, backend=backend)


def composed(normalizer: Callable[..., Tensor]) -> Peer:
    """What one writes without a kernel: scores, weights and output by separate operations."""
    return lambda q, k, v: normalizer((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5, dim=-1) @ v


def bench_attention(
    shape: tuple[int, int, int, int] = SHAPE,
    normalizers: Iterable[str] = NORMALIZERS,
    repeats: int = 20,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time a forward and a backward of every peer, after checking that they compute the same.

    Args:
        shape: batch, heads, tokens, head dimension.
        normalizers: spec strings to time on their default backend.
        repeats: samples of each peer.
        device: "cpu".

    Returns:
        The dictionary that ``report.table`` prints.

    Raises:
        RuntimeError: two peers that should agree do not.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(shape, generator=generator).to(device) for _ in range(4))
    inputs = tuple(t.requires_grad_() for t in (q, k, v))
    functions = peers(normalizers)
    check(functions, inputs, grad)
    steps = {name: forward_backward(function, inputs, grad) for name, function in functions.items()}
    timings = in_turns(steps, repeats)
    settings = dict(zip(("batch", "heads", "tokens", "dim"), shape, strict=True)) | {"dtype": "float32"}
    return as_dict("attention, forward and backward", BASELINE, timings, device, settings)


def forward_backward(function: Peer, inputs: tuple[Tensor, ...], grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Output's and inputs' gradients, as training computes them."""
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def check(functions: dict[str, Peer], inputs: tuple[Tensor, ...], grad: Tensor, tolerance: float = 1e-4) -> None:
    """Compare outputs and gradients with softmax or entmax-1.5 composed of plain operations.

    Raises:
        RuntimeError: one differs by more than ``tolerance``.
    """
    for family, normalizer in (("softmax", torch.softmax), ("entmax15", entmax15)):
        plain = composed(normalizer)
        expected = (plain(*inputs), *forward_backward(plain, inputs, grad)())
        for name, function in functions.items():
            if family in name or (family == "entmax15" and "bisect" in name):
                found = (function(*inputs), *forward_backward(function, inputs, grad)())
                error = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
                if not error <= tolerance:
                    raise RuntimeError(f"{name} differs from {family} by {error:.1e}, more than {tolerance:.0e}")
