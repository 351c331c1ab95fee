"""What attention is compared with on a GPU: functions of ``q, k, v: [B, H, N, D]`` that return the same shape."""

from __future__ import annotations

import importlib.util
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..attention import attention
from .attention import Peer, bind_backend, composed
from .roofline import Shape

__all__ = ["ENTMAX", "OURS", "SDPA", "peers"]

OURS = "entmax15 (this package)"
SDPA = ("SDPA, flash", "SDPA, cuDNN")
ENTMAX = ("entmax.entmax15", "AdaSplash v1", "AdaSplash's Triton entmax")


def peers(shape: Shape) -> dict[str, Peer]:
    """All peers that are installed, by name; packages that are missing are left out."""
    found: dict[str, Peer] = {
        SDPA[0]: _sdpa(SDPBackend.FLASH_ATTENTION),
        SDPA[1]: _sdpa(SDPBackend.CUDNN_ATTENTION),
        "softmax as DINO writes it": composed(torch.softmax),
    }
    if importlib.util.find_spec("entmax"):
        import entmax

        found[ENTMAX[0]] = composed(entmax.entmax15)
    if importlib.util.find_spec("adasplash"):
        found |= _adasplash()
    found = {name: _each_length(function, shape) for name, function in found.items()}
    if importlib.util.find_spec("xformers"):
        found["xformers"] = _xformers(shape)
    lengths = list(shape.lengths) if shape.packed else None
    for name, normalizer in ((OURS, "entmax15"), ("sparsemax (this package)", "sparsemax")):
        found[name] = _ours(normalizer, lengths)
    return found


def _ours(normalizer: str, lengths: list[int] | None) -> Peer:
    if lengths is None:
        return bind_backend(normalizer, "triton")
    return lambda q, k, v: attention(q, k, v, attn_mask=lengths, normalizer=normalizer, backend="triton")


def _sdpa(backend: SDPBackend) -> Peer:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return run


# These two are imported when they run, so that one that does not load is reported like one that does not run.


def _adasplash() -> dict[str, Peer]:
    # Its kernels read q, k and v as if they were contiguous; the copies are part of using it.
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from adasplash import adasplash_v1

        out: Tensor = adasplash_v1(q.contiguous(), k.contiguous(), v.contiguous(), alpha=1.5)
        return out

    def normalize(scores: Tensor, dim: int) -> Tensor:
        from adasplash import triton_entmax

        weights: Tensor = triton_entmax(scores.contiguous(), alpha=1.5)
        return weights

    return {ENTMAX[1]: attend, ENTMAX[2]: composed(normalize)}


def _xformers(shape: Shape) -> Peer:
    biases: list[Any] = []

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from xformers.ops import fmha

        if not biases:
            biases.append(fmha.BlockDiagonalMask.from_seqlens(list(shape.lengths)) if shape.packed else None)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out: Tensor = fmha.memory_efficient_attention(q, k, v, attn_bias=biases[0])
        return out.transpose(1, 2)

    return run


def _each_length(function: Peer, shape: Shape) -> Peer:
    """A packed batch for a peer that knows none: one call for each run of equally long sequences."""
    if not shape.packed:
        return function
    runs = [(length, len(list(group))) for length, group in groupby(shape.lengths)]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outputs, start = [], 0
        for length, count in runs:
            stop = start + length * count
            parts = (t[0, :, start:stop].unflatten(1, (count, length)).transpose(0, 1) for t in (q, k, v))
            outputs.append(function(*parts).transpose(0, 1).flatten(1, 2))
            start = stop
        return torch.cat(outputs, 1)[None]

    return run
