"""Which blocks a kernel may use, and the choice among them: measured once by triton.autotune, then remembered.

The lists are short and ordered by expectation: the first entry runs where nothing is measured (the interpreter,
``torch.use_deterministic_algorithms``, ``ATTN_PLUGINS_AUTOTUNE=0``). Registers, spills and shared memory behind them
are in README.md beside this file.
"""

import functools
import inspect
import os
from typing import Any

import torch
import triton
from triton import Config

from .backward import backward_keys_kernel, backward_queries_kernel
from .forward import forward_kernel
from .short import backward_short_kernel

__all__ = ["KERNELS", "choices", "interpreting", "length_class", "measured", "packed_rows", "tuner", "whole_head_fits"]

_LONGEST_ON_CHIP = 256
KERNELS = {
    "forward": forward_kernel,
    "queries": backward_queries_kernel,
    "keys": backward_keys_kernel,
    "short": backward_short_kernel,
}
_KEY = ["LENGTH", "HEAD_DIM", "VALUE_DIM", "FAMILY", "CAUSAL", "MASKED", "PACKED"]


def interpreting() -> bool:
    """Whether the kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` when triton was imported)."""
    return not isinstance(forward_kernel, triton.runtime.JITFunction)


def length_class(n: int) -> int:
    """The number of keys that a kernel is built for: a power of two up to 256, then steps of 1, 1.25, 1.5 times one."""
    power: int = max(16, triton.next_power_of_2(n))
    if power <= _LONGEST_ON_CHIP:
        return power
    return next(size for size in (power * 5 // 8, power * 3 // 4, power) if n <= size)


def packed_rows(itemsize: int) -> int:
    """Rows of a block in packed batches, whose table of blocks is made before blocks could be tuned."""
    return 64 if itemsize == 2 else 32


@functools.cache
def capability(device: torch.device) -> int:
    """Compute capability times ten; a Hopper's where the interpreter runs on a CPU."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def whole_head_fits(length: int, width: int, itemsize: int, capability: int) -> bool:
    """Whether the backward pass of a head of ``length`` keys, ``width`` wide, stays within one program.

    Elsewhere than on Hopper and its successor in the data centre, 256 keys of 64 spill registers, and on consumer
    cards they exceed the shared memory.
    """
    most = 256 * 64 if capability in (90, 100) else 128 * 64
    return itemsize == 2 and length <= _LONGEST_ON_CHIP and length * width <= most


def choices(kernel: str, length: int, width: int, itemsize: int, packed: bool) -> list[Config]:
    """Blocks for a kernel, the expected best first.

    Args:
        kernel: "forward", "queries", "keys" or "short".
        length: of the longest row, as ``length_class`` has it.
        width: of a head, padded to a power of two.
        itemsize: bytes of an element of the inputs.
        packed: rows come in blocks of ``packed_rows``.
    """
    table = {"forward": _forward, "queries": _queries, "keys": _keys, "short": _short}[kernel](length, width, itemsize)
    if packed and kernel != "short":
        own = "BLOCK_N" if kernel == "keys" else "BLOCK_M"
        table = [config for config in table if config.kwargs[own] == packed_rows(itemsize)]
    return table


def _config(warps: int, stages: int, **blocks: Any) -> Config:
    return Config(blocks, num_warps=warps, num_stages=stages)


def _forward(length: int, width: int, itemsize: int) -> list[Config]:
    if itemsize == 4:
        return [_config(4, 1, BLOCK_M=32, BLOCK_N=32, TILE=32), _config(4, 2, BLOCK_M=64, BLOCK_N=32, TILE=32)]
    if length <= 64:
        return [_config(warps, 1, BLOCK_M=rows, BLOCK_N=64, TILE=length) for rows, warps in ((64, 4), (32, 2), (16, 1))]
    if length <= _LONGEST_ON_CHIP:
        return [
            _config(warps, 1, BLOCK_M=rows, BLOCK_N=64, TILE=length) for rows, warps in ((64, 4), (32, 4), (128, 8))
        ]
    deep = 3 if width <= 64 else 2
    table = [
        _config(8, deep, BLOCK_M=128, BLOCK_N=64, TILE=64),
        _config(4, deep, BLOCK_M=64, BLOCK_N=64, TILE=64),
        _config(8, 2, BLOCK_M=128, BLOCK_N=128, TILE=128),
    ]
    if length <= 320 and width <= 64:  # 257 or 261 keys: all but one narrow block on chip
        table.insert(0, _config(4, 2, BLOCK_M=64, BLOCK_N=16, TILE=_LONGEST_ON_CHIP))
    return table


def _queries(length: int, width: int, itemsize: int) -> list[Config]:
    if itemsize == 4:
        return [_config(4, 1, BLOCK_M=32, BLOCK_N=16, SKIP=False), _config(8, 1, BLOCK_M=64, BLOCK_N=32, SKIP=False)]
    narrow = 64 if width <= 64 else 32
    table = [_config(4, 2, BLOCK_M=64, BLOCK_N=narrow, SKIP=False), _config(4, 3, BLOCK_M=64, BLOCK_N=32, SKIP=False)]
    if length > _LONGEST_ON_CHIP:
        table += [
            _config(8, 2, BLOCK_M=128, BLOCK_N=64, SKIP=False),
            _config(4, 2, BLOCK_M=64, BLOCK_N=narrow, SKIP=True),
        ]
    return table


def _keys(length: int, width: int, itemsize: int) -> list[Config]:
    if itemsize == 4:
        return [_config(4, 1, BLOCK_M=16, BLOCK_N=32, SKIP=False), _config(8, 1, BLOCK_M=32, BLOCK_N=64, SKIP=False)]
    narrow = 64 if width <= 64 else 32
    table = [_config(4, 2, BLOCK_M=narrow, BLOCK_N=64, SKIP=False), _config(4, 3, BLOCK_M=32, BLOCK_N=64, SKIP=False)]
    if length > _LONGEST_ON_CHIP:
        table += [
            _config(8, 2, BLOCK_M=64, BLOCK_N=128, SKIP=False),
            _config(4, 2, BLOCK_M=narrow, BLOCK_N=64, SKIP=True),
        ]
    return table


def _short(length: int, width: int, itemsize: int) -> list[Config]:
    if length * width <= 64 * 64:
        return [_config(4, 1, BLOCK_M=rows, TILE=max(length, 16)) for rows in (32, 64)]
    if length * width <= 128 * 64:
        return [_config(8, 1, BLOCK_M=64, TILE=length), _config(4, 1, BLOCK_M=32, TILE=length)]
    return [_config(8, stages, BLOCK_M=32, TILE=length) for stages in (1, 2)]


def measured() -> bool:
    switched_off = os.environ.get("ATTN_PLUGINS_AUTOTUNE", "1") == "0"
    return not (interpreting() or switched_off or torch.are_deterministic_algorithms_enabled())


@functools.lru_cache(maxsize=256)
def tuner(kernel: str, length: int, width: int, itemsize: int, packed: bool) -> Any:
    configs = choices(kernel, length, width, itemsize, packed)
    # Results on disk (triton 3.4 and later) spare every later process the measurement.
    remember = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
    return triton.autotune(configs=configs, key=_KEY, **remember)(KERNELS[kernel])
