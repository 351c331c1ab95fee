"""From tensors to kernel launches: shapes, strides, tables of packed blocks, outputs."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from . import tuning
from .rows import ENTMAX15, GENERAL, SPARSEMAX

__all__ = ["Problem", "backward", "forward", "token_major"]

_FAMILY = {1.5: ENTMAX15.value, 2.0: SPARSEMAX.value}
# Largest |sum p - 1| at which the search for tau ends: well under one rounding of the output.
_TOLERANCE = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 2e-3}


def token_major(shape: Sequence[int], like: Tensor) -> Tensor:
    """Room for ``[B, H, N, D]``, laid out as ``[B, N, H, D]``, so that merging the heads afterwards is a view."""
    batch, heads, tokens, dim = shape
    return like.new_empty(batch, tokens, heads, dim).transpose(1, 2)


@functools.lru_cache(maxsize=64)
def _tiles(lengths: tuple[int, ...], rows: int, device: torch.device) -> Tensor:
    """Blocks of ``rows`` tokens of packed sequences: ``[n_tiles, 3]`` int32 (start, length, block), longest first."""
    table, start = [], 0
    for length in lengths:
        table += [(start, length, block) for block in range(math.ceil(length / rows))]
        start += length
    table.sort(key=lambda tile: -tile[1])
    return torch.tensor(table, dtype=torch.int32, device=device)


@dataclass(frozen=True)
class Problem:
    """What the forward and the backward launches of one call have in common.

    Attributes:
        q, k, v: ``[B, H, N, D]``, ``[B, H, S, D]``, ``[B, H, S, Dv]``; last stride 1.
        alpha: the exponent, if ``alphas`` is None.
        alphas: ``[H]`` float32, one exponent a head.
        key_mask: ``[B, S]`` uint8, contiguous, nonzero where a key takes part.
        lengths: of the packed sequences, which sum to N = S.
        causal: query i sees keys 0..i (of its sequence).
        scale: factor on the scores.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    alpha: float
    alphas: Tensor | None
    key_mask: Tensor | None
    lengths: tuple[int, ...] | None
    causal: bool
    scale: float

    @property
    def family(self) -> int:
        family: int = GENERAL.value if self.alphas is not None else _FAMILY[self.alpha]
        return family

    @property
    def scaled(self) -> float:
        """Factor on the scores as the kernels take it."""
        return self.scale if self.alphas is not None else self.scale * (self.alpha - 1)

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        longest = self.k.shape[-2] if self.lengths is None else max(self.lengths)
        width = max(self.widths)
        return tuning.length_class(longest), width, self.q.element_size(), self.lengths is not None

    @property
    def widths(self) -> tuple[int, int]:
        """Head dimensions of q and k, and of v, padded to what a matrix product takes."""
        return tuple(max(16, triton.next_power_of_2(t.shape[-1])) for t in (self.q, self.v))

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.q.shape[-2], self.k.shape[-2], self.q.shape[1]

    @property
    def constants(self) -> dict[str, object]:
        full = self.q.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
        return {
            "FAMILY": self.family,
            "HEAD_DIM": self.q.shape[-1],
            "VALUE_DIM": self.v.shape[-1],
            "BLOCK_D": self.widths[0],
            "BLOCK_V": self.widths[1],
            "CAUSAL": self.causal,
            "MASKED": self.key_mask is not None,
            "PACKED": self.lengths is not None,
            "PRECISION": "tf32x3" if full else "tf32",
            "LENGTH": self.shape[0],
        }

    def optional(self, rows: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """alphas, key_mask, tiles, n_tiles; q stands in for the tensors that are not read."""
        tiles = self.q if self.lengths is None else _tiles(self.lengths, rows, self.q.device)
        alphas, key_mask = (self.q if t is None else t for t in (self.alphas, self.key_mask))
        return alphas, key_mask, tiles, tiles.shape[0]

    def grid(self, rows: int, block: str, n_tiles: int) -> Callable[[dict[str, int]], tuple[int]]:
        """Programs: one a block of ``rows`` rows, head and batch element."""
        instances = self.q.shape[0] * self.q.shape[1]
        if self.lengths is not None:
            return lambda meta: (n_tiles * instances,)
        return lambda meta: (triton.cdiv(rows, meta[block]) * instances,)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for t in tensors for stride in t.stride()[:3])


def forward(p: Problem) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, N, Dv]`` and thresholds ``[B, H, N]`` float32."""
    batch, heads, tokens, _ = p.q.shape
    out = token_major((*p.q.shape[:-1], p.v.shape[-1]), p.v)
    taus = p.q.new_empty(batch, heads, tokens, dtype=torch.float32)
    alphas, key_mask, tiles, n_tiles = p.optional(tuning.packed_rows(p.q.element_size()))
    args = (
        *(p.q, p.k, p.v, out, taus, alphas, key_mask, tiles),
        *_strides(p.q, p.k, p.v, out),
        *(p.scaled, _TOLERANCE[p.q.dtype], *p.numbers, n_tiles),
    )
    _launch("forward", p.grid(tokens, "BLOCK_M", n_tiles), args, p.shape, **p.constants)
    return out, taus


def backward(
    p: Problem, out: Tensor, taus: Tensor, dout: Tensor, alpha_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k and v, laid out token by token, and of ``alphas`` (``[H]``, if asked for)."""
    if dout.stride(-1) != 1:
        dout = dout.contiguous()
    dq, dk, dv = (token_major(t.shape, t) for t in (p.q, p.k, p.v))
    length, width, itemsize, _ = p.shape
    if not alpha_grad and tuning.whole_head_fits(length, width, itemsize, tuning.capability(p.q.device)):
        _backward_short(p, taus, dout, dq, dk, dv)
        return dq, dk, dv, None

    tokens, n_keys, _ = p.numbers
    alphas, key_mask, tiles, n_tiles = p.optional(tuning.packed_rows(p.q.element_size()))
    numbers = (p.scaled, p.scale, *p.numbers, n_tiles)
    deltas = torch.empty_like(taus)
    dalphas = torch.empty_like(taus) if alpha_grad else deltas
    args = (
        *(p.q, p.k, p.v, out, dout, taus, deltas, dq, dalphas, alphas, key_mask, tiles),
        *_strides(p.q, p.k, p.v, out, dout, dq),
        *numbers,
    )
    grid = p.grid(tokens, "BLOCK_M", n_tiles)
    _launch("queries", grid, args, p.shape, **p.constants, ALPHA_GRAD=alpha_grad)
    args = (
        *(p.q, p.k, p.v, dout, taus, deltas, dk, dv, alphas, key_mask, tiles),
        *_strides(p.q, p.k, p.v, dout, dk, dv),
        *numbers,
    )
    _launch("keys", p.grid(n_keys, "BLOCK_N", n_tiles), args, p.shape, **p.constants)
    return dq, dk, dv, dalphas.sum((0, 2)) if alpha_grad else None


def _backward_short(p: Problem, taus: Tensor, dout: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
    alphas, key_mask, tiles, n_tiles = p.optional(tuning.length_class(max(p.lengths or (1,))))
    args = (
        *(p.q, p.k, p.v, dout, taus, dq, dk, dv, alphas, key_mask, tiles),
        *_strides(p.q, p.k, p.v, dout, dq, dk, dv),
        *(p.scaled, p.scale, *p.numbers, n_tiles),
    )
    _launch("short", p.grid(1, "TILE", n_tiles), args, p.shape, **p.constants)


def _launch(kernel: str, grid: Any, args: tuple[Any, ...], shape: tuple[int, int, int, bool], **meta: Any) -> None:
    """Run a kernel with the best of its blocks.

    Args:
        kernel: its name, see ``tuning.choices``.
        grid: a dict of block sizes (BLOCK_M, ...) -> ``(number of programs,)``.
        args: tensors, strides and numbers in the kernel's order.
        shape: ``(length, width, itemsize, packed)`` for ``tuning.choices``.
        meta: the kernel's constants that are not block sizes.
    """
    with torch.cuda.device_of(args[0]):  # triton launches on the current device, whichever the tensors are on
        if tuning.measured():
            tuning.tuner(kernel, *shape)[grid](*args, **meta)
            return
        config = tuning.choices(kernel, *shape)[0]
        launcher = {} if tuning.interpreting() else {"num_warps": config.num_warps, "num_stages": config.num_stages}
        tuning.KERNELS[kernel][grid](*args, **meta, **config.kwargs, **launcher)
