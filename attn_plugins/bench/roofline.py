"""How fast attention could be: the bytes that must move, the operations that must be done, and a chip's ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Ceilings", "Shape", "Work", "floor_ms", "measure_ceilings", "minimal_work"]


@dataclass(frozen=True)
class Shape:
    """One attention call.

    Attributes:
        name: for the report.
        batch, heads, dim: of query, key and value.
        lengths: tokens of each sequence of a batch element; more than one means a packed batch.
    """

    name: str
    batch: int
    heads: int
    lengths: tuple[int, ...]
    dim: int

    @property
    def tokens(self) -> int:
        """Tokens of one batch element."""
        return sum(self.lengths)

    @property
    def packed(self) -> bool:
        return len(self.lengths) > 1


@dataclass(frozen=True)
class Work:
    """What no implementation can avoid.

    Attributes:
        bytes: each input read once, each output written once.
        operations: additions and multiplications of the matrix products.
    """

    bytes: int
    operations: int


@dataclass(frozen=True)
class Ceilings:
    """What a chip was measured to reach.

    Attributes:
        bytes_per_s: read plus written by a large copy.
        operations_per_s: of a large matrix product in the inputs' dtype.
    """

    bytes_per_s: float
    operations_per_s: float


def minimal_work(shape: Shape, itemsize: int, backward: bool) -> Work:
    """The work of attention that keeps no weights: of its forward pass, or of its backward pass.

    Forward: q, k, v in; output and one float a row out; two products. Backward: q, k, v, output's gradient and one
    float a row in; three gradients out; five products, since scores are computed again.
    """
    rows = shape.batch * shape.heads * shape.tokens
    pairs = shape.batch * shape.heads * sum(n * n for n in shape.lengths)
    tensors, products = (7, 5) if backward else (4, 2)
    return Work(tensors * rows * shape.dim * itemsize + 4 * rows, products * 2 * pairs * shape.dim)


def floor_ms(work: Work, ceilings: Ceilings) -> float:
    """Milliseconds below which ``work`` cannot be done: the longer of moving its bytes and doing its operations."""
    return 1e3 * max(work.bytes / ceilings.bytes_per_s, work.operations / ceilings.operations_per_s)


def measure_ceilings(device: torch.device, dtype: torch.dtype = torch.bfloat16, size: int = 8192) -> Ceilings:
    """Copy rate and matrix rate of a device, on random data, the best of ten.

    Args:
        device: where.
        dtype: of the matrix product.
        size: rows and columns of the matrices; four times their bytes are copied.
    """
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(4, size, size, device=device, dtype=dtype)
    target = torch.empty_like(source)
    product = _best_seconds(lambda: torch.mm(a, b), device)
    copy = _best_seconds(lambda: target.copy_(source), device)
    return Ceilings(2 * source.numel() * source.element_size() / copy, 2 * size**3 / product)


def _best_seconds(function: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    def once() -> float:
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(repeats))
