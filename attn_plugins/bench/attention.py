"""Forward and backward of attention: our backends beside torch's softmax and the entmax package."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import attention
from ..functional import entmax15
from .report import as_dict, table
from .timing import in_turns, peak_mib

__all__ = ["BASELINE", "NORMALIZERS", "SHAPE", "attention_table", "bench_attention", "check", "peak_memory", "peers"]

BASELINE = "softmax (SDPA)"
NORMALIZERS = ("entmax15", "sparsemax", "entmax:alpha=1.25")
SHAPE = (16, 6, 197, 64)
"""Batch, heads, tokens, head dimension: ViT-S/16 at 224 x 224, batch 16."""

HIGHEST = Path("/proc/self/clear_refs")
"""Where Linux is told to begin its count of a process's highest memory again (proc(5))."""

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
    memory: bool = False,
) -> dict[str, Any]:
    """Time a forward and a backward of every peer, after checking that they compute the same.

    Args:
        shape: batch, heads, tokens, head dimension.
        normalizers: spec strings to time on their default backend.
        repeats: samples of each peer.
        device: "cpu".
        memory: whether to measure ``peak_mib`` of every peer, too.

    Returns:
        The dictionary that ``attention_table`` prints.

    Raises:
        RuntimeError: two peers that should agree do not.
        ValueError: ``memory`` where there is no Linux.
    """
    if memory and not HIGHEST.exists():
        raise ValueError(f"memory is counted by Linux, in {HIGHEST}, which is not here; leave it out")
    normalizers = tuple(normalizers)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(shape, generator=generator).to(device) for _ in range(4))
    inputs = tuple(t.requires_grad_() for t in (q, k, v))
    functions = peers(normalizers)
    check(functions, inputs, grad)
    steps = {name: forward_backward(function, inputs, grad) for name, function in functions.items()}
    timings = in_turns(steps, repeats)
    settings = dict(zip(("batch", "heads", "tokens", "dim"), shape, strict=True)) | {"dtype": "float32"}
    result = as_dict("attention, forward and backward", BASELINE, timings, device, settings)
    for name, peer in result["peers"].items() if memory else ():
        peer["peak_mib"] = peak_memory(name, shape, normalizers)
    return result


def attention_table(result: Mapping[str, Any]) -> str:
    """The usual table, then each peer's memory where it was measured."""
    base = result["peers"][BASELINE].get("peak_mib")
    told = [
        f"{name}: {peer['peak_mib']:.1f} MiB beyond its inputs, x {peer['peak_mib'] / base:.2f}"
        for name, peer in result["peers"].items()
        if base
    ]
    return "\n".join([table(result), *told])


def peak_memory(name: str, shape: tuple[int, int, int, int], normalizers: Iterable[str] = NORMALIZERS) -> float:
    """MiB that a forward and a backward of a peer take beyond their inputs: outputs, gradients, what lies between.

    Measured in a process of its own (Linux), whose memory is read by the kernel's count of its highest.
    """
    code = f"from {__name__} import _own_peak; print(_own_peak({name!r}, {tuple(shape)!r}, {tuple(normalizers)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _own_peak(name: str, shape: tuple[int, int, int, int], normalizers: tuple[str, ...]) -> float:
    function = peers(normalizers)[name]
    small = tuple(torch.randn(1, 1, 4, shape[-1], requires_grad=True) for _ in range(3))
    forward_backward(function, small, torch.ones_like(small[0]))()  # loads kernels and starts threads
    inputs = tuple(torch.randn(shape, requires_grad=True) for _ in range(3))
    grad = torch.randn(shape)
    HIGHEST.write_text("5")  # the highest is now what is held
    before = peak_mib()
    forward_backward(function, inputs, grad)()
    return peak_mib() - before


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
