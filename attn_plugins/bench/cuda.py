"""``attn-plugins bench attention --device cuda``: the fused kernels beside every peer, and how far from the floor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..machine import machine, versions
from ..text import columns
from . import cuda_peers
from .attention import Peer, forward_backward
from .cuda_steps import bench_cuda_steps, steps_table
from .roofline import Ceilings, Shape, floor_ms, measure_ceilings, minimal_work
from .timing import cuda_clock, in_turns

__all__ = ["SHAPES", "bench_cuda", "cuda_table", "require_cuda"]

SHAPES = (
    Shape("ViT-S/16 at 224", 64, 6, (197,), 64),
    Shape("local crops", 512, 6, (37,), 64),
    Shape("DINOv2 nested batch", 1, 6, (257,) * 128 + (50,) * 512, 64),
    Shape("ViT-L/14 at 518", 16, 16, (1370,), 64),
    Shape("N 4097", 4, 16, (4097,), 64),
)
_clock = functools.partial(cuda_clock, calls=10)
_PACKAGES = ("torch", "triton", "entmax", "adasplash", "xformers")


def require_cuda(device: str) -> torch.device:
    """The device, if it is a GPU that torch can use.

    Raises:
        ValueError: it is not.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            f"--device {device} needs a GPU, and torch {torch.__version__} sees none (torch.cuda.is_available() is "
            "False); run this on a machine with one, or leave --device out to time the CPU path"
        )
    return torch.device(device)


def bench_cuda(
    device: str = "cuda",
    shapes: Sequence[Shape] = SHAPES,
    repeats: int = 30,
    dtype: torch.dtype = torch.bfloat16,
    steps: bool = True,
) -> dict[str, Any]:
    """Time forward, and forward + backward, of every peer at every shape, and read their peak memory.

    Args:
        device: "cuda" or "cuda:1", ...
        shapes: what to run.
        repeats: samples of each; a sample is the mean of ten calls between two CUDA events.
        dtype: of query, key and value.
        steps: also time whole training steps (needs timm; DINO's own if ``DINO_ROOT`` is set).

    Returns:
        What ``cuda_table`` prints: machine, versions, ceilings, and per shape and peer medians, spread and
        peak bytes, or the reason why a peer did not run.

    Raises:
        ValueError: there is no GPU.
        RuntimeError: our output differs from the reference.
    """
    place = require_cuda(device)
    ceilings = measure_ceilings(place, dtype)
    results = {shape.name: _bench_shape(shape, place, dtype, repeats, ceilings) for shape in shapes}
    return {
        "title": "attention on a GPU",
        "machine": machine(device),
        "versions": versions(_PACKAGES),
        "dtype": str(dtype),
        "ceilings": vars(ceilings),
        "shapes": results,
        "steps": bench_cuda_steps(place, _clock, repeats) if steps else {},
    }


def _bench_shape(
    shape: Shape, device: torch.device, dtype: torch.dtype, repeats: int, ceilings: Ceilings
) -> dict[str, Any]:
    # As a qkv projection leaves them: views, not contiguous.
    projected = torch.randn(shape.batch, shape.tokens, 3, shape.heads, shape.dim, device=device, dtype=dtype)
    inputs = tuple(t.detach().requires_grad_() for t in projected.permute(2, 0, 3, 1, 4).unbind(0))
    grad = torch.randn_like(inputs[0])
    working: dict[str, Peer] = {}
    failed: dict[str, str] = {}
    for name, peer in cuda_peers.peers(shape).items():
        reason = None if name == cuda_peers.OURS else _attempt(peer, inputs, grad)
        if reason is None:
            working[name] = peer
        else:
            failed[name] = reason
    if cuda_peers.OURS in working and cuda_peers.ENTMAX[0] in working:
        _check(working[cuda_peers.OURS], working[cuda_peers.ENTMAX[0]], inputs)

    forward = {name: _without_gradient(peer, inputs) for name, peer in working.items()}
    both = {name: forward_backward(peer, inputs, grad) for name, peer in working.items()}
    times = {"forward": in_turns(forward, repeats, clock=_clock), "both": in_turns(both, repeats, clock=_clock)}
    rows = {
        name: {
            "forward_ms": times["forward"][name].median,
            "both_ms": times["both"][name].median,
            "both_spread_ms": times["both"][name].spread,
            "peak_bytes": _peak(both[name], device),
        }
        for name in working
    }
    forward_work, backward_work = (minimal_work(shape, dtype.itemsize, backward) for backward in (False, True))
    return {
        "shape": vars(shape),
        "floor_forward_ms": floor_ms(forward_work, ceilings),
        "floor_both_ms": floor_ms(forward_work, ceilings) + floor_ms(backward_work, ceilings),
        "peers": rows,
        "failed": failed,
    }


def _without_gradient(peer: Peer, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return peer(*inputs)

    return run


def _attempt(peer: Peer, inputs: tuple[Tensor, ...], grad: Tensor) -> str | None:
    """Why somebody else's kernel cannot run here, in its own words, or None."""
    try:
        forward_backward(peer, inputs, grad)()
        torch.cuda.synchronize()
    except (RuntimeError, ValueError, AssertionError, ImportError, OSError, AttributeError, TypeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {first_line[:300]}"
    return None


def _check(ours: Peer, theirs: Peer, inputs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        actual, expected = ours(*inputs).float(), theirs(*(t.float() for t in inputs))
    error = float((actual - expected).norm() / expected.norm())
    if not error < 2e-2:
        raise RuntimeError(f"our output differs from entmax.entmax15 by {error:.1e} of its norm; nothing is timed")


def _peak(function: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cuda_table(result: Mapping[str, Any]) -> str:
    """The result of ``bench_cuda`` as text."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rates = result["ceilings"]
    lines = [
        f"{result['title']}: {result['machine']['name']}, {result['dtype']}, {versions}",
        f"ceilings measured here: {rates['bytes_per_s'] / 1e12:.2f} TB/s copied, "
        f"{rates['operations_per_s'] / 1e12:.0f} TFLOP/s multiplied",
    ]
    for name, shape in result["shapes"].items():
        lines.append(
            f"\n{name}: floor {shape['floor_forward_ms']:.3f} ms forward, {shape['floor_both_ms']:.3f} ms both"
        )
        rows = [("", "forward ms", "both ms", "spread ms", "peak MiB")]
        for peer, row in shape["peers"].items():
            forward, both, spread = (f"{row[key]:.3f}" for key in ("forward_ms", "both_ms", "both_spread_ms"))
            rows.append((peer, forward, both, spread, f"{row['peak_bytes'] / 2**20:.1f}"))
        lines += columns(rows, numbers=True)
        lines += [f"{peer} did not run: {reason}" for peer, reason in shape["failed"].items()]
    if result["steps"]:
        lines.append("\n" + steps_table(result["steps"]))
    return "\n".join(lines)
