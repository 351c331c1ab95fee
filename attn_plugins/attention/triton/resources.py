"""Registers, spills and shared memory of every block choice, compiled ahead of time: no GPU needed.

``python -m attn_plugins.attention.triton.resources`` prints the table. Needs triton's compiler (not its interpreter).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import tuning
from .rows import ENTMAX15, GENERAL, SPARSEMAX

__all__ = ["Resources", "compile_kernel", "main"]

SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory a block may use, by compute capability (CUDA C++ programming guide, table of features)."""

_POINTERS = {
    "taus": "*fp32",
    "deltas": "*fp32",
    "dalphas": "*fp32",
    "alphas": "*fp32",
    "key_mask": "*u8",
    "tiles": "*i32",
}
_NUMBERS = {"scale": "fp32", "factor": "fp32", "tolerance": "fp32"}
_INTEGERS = ("tokens", "n_keys", "heads", "n_tiles")
_ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
_FAMILIES = {"sparsemax": SPARSEMAX, "entmax15": ENTMAX15, "general": GENERAL}
_LINE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel asks of a multiprocessor.

    Attributes:
        registers: per thread.
        spilled: bytes of local memory per thread.
        shared: bytes of shared memory per program.
        instructions: matrix instructions in the machine code by kind (HGMMA: Hopper's, HMMA: Ampere's).
    """

    registers: int
    spilled: int
    shared: int
    instructions: dict[str, int]


def compile_kernel(
    kernel: str,
    config: triton.Config,
    length: int,
    dim: int = 64,
    dtype: str = "bf16",
    capability: int = 90,
    family: str = "entmax15",
    **flags: bool,
) -> Resources:
    """Compile a kernel for a GPU that need not be there.

    Args:
        kernel: "forward", "queries", "keys" or "short".
        config: blocks, warps and stages, from ``tuning.choices``.
        length: of the longest row, as ``tuning.length_class`` has it.
        dim: of a head.
        dtype: "bf16", "fp16" or "fp32".
        capability: 80, 86, 89, 90.
        family: "sparsemax", "entmax15" or "general".
        flags: CAUSAL, MASKED, PACKED, ALPHA_GRAD, all False unless given.

    Raises:
        RuntimeError: triton's interpreter is on, or its binary tools cannot read the result.
    """
    if tuning.interpreting():
        raise RuntimeError("TRITON_INTERPRET=1 replaces the compiler; unset it before triton is imported")
    width = max(16, triton.next_power_of_2(dim))
    constants: dict[str, Any] = {"CAUSAL": False, "MASKED": False, "PACKED": False}
    if kernel == "queries":
        constants["ALPHA_GRAD"] = False
    constants |= {"FAMILY": _FAMILIES[family].value, "HEAD_DIM": dim, "VALUE_DIM": dim}
    constants |= {"BLOCK_D": width, "BLOCK_V": width}
    constants |= {"PRECISION": "tf32x3" if dtype == "fp32" else "tf32", "LENGTH": length} | flags | config.kwargs
    function = tuning.KERNELS[kernel]
    signature = {name: _type(name, dtype) if name not in constants else "constexpr" for name in function.arg_names}
    positions = {name: (i,) for i, name in enumerate(function.arg_names)}
    aligned = {
        positions[name]: [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.startswith("*") or name.startswith("stride")
    }
    source = ASTSource(function, signature, {positions[name]: value for name, value in constants.items()}, aligned)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage, code = (_inspect(compiled.asm["cubin"], flag) for flag in ("--dump-resource-usage", "--dump-sass"))
    found = _LINE.search(usage)
    if found is None:
        raise RuntimeError(f"cuobjdump's report is not what was expected: {usage[:500]!r}")
    counts = {name: len(re.findall(rf"\b{name}\b", code)) for name in ("HGMMA", "HMMA")}
    return Resources(int(found[1]), int(found[2]) + int(found[3]), compiled.metadata.shared, counts)


def _type(name: str, dtype: str) -> str:
    if name in _INTEGERS or name.startswith("stride"):
        return "i32"
    return _NUMBERS.get(name) or _POINTERS.get(name) or f"*{dtype}"


def _inspect(cubin: bytes, flag: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout


def main(argv: list[str] | None = None) -> int:
    """Print the table for one dtype and compute capability."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=90, choices=SHARED_LIMIT)
    parser.add_argument("--dtype", default="bf16", choices=_ITEMSIZE)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--family", default="entmax15", choices=_FAMILIES)
    parser.add_argument("--lengths", type=int, nargs="+", default=[37, 197, 257, 1370])
    args = parser.parse_args(argv)
    itemsize, width = _ITEMSIZE[args.dtype], max(16, triton.next_power_of_2(args.dim))
    print("| keys | kernel | blocks | warps | stages | registers | spilled bytes | shared bytes |")
    print("|---|---|---|---|---|---|---|---|")
    for keys in args.lengths:
        length = tuning.length_class(keys)
        backward = (
            ("short",) if tuning.whole_head_fits(length, width, itemsize, args.capability) else ("queries", "keys")
        )
        for kernel in ("forward", *backward):
            for config in tuning.choices(kernel, length, width, itemsize, packed=False):
                r = compile_kernel(kernel, config, length, args.dim, args.dtype, args.capability, args.family)
                blocks = ", ".join(f"{name} {value}" for name, value in config.kwargs.items())
                numbers = (config.num_warps, config.num_stages, r.registers, r.spilled, r.shared)
                print(f"| {keys} | {kernel} | {blocks} |", " | ".join(str(n) for n in numbers), "|", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
