"""The kernels by other compilers and for other processors compute what the reference does.

Debian: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user clang libomp-dev.
"""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

import attn_plugins
from attn_plugins.native import build

pytestmark = pytest.mark.nightly

NATIVE = ("-march=native",)
CHAINS = {
    "gcc": (("gcc", *NATIVE), ()),
    "clang": (("clang", *NATIVE), ()),
    "gcc for any x86-64": (("gcc", "-march=x86-64"), ()),
    "gcc for NEON": (("aarch64-linux-gnu-gcc", "-static"), ("qemu-aarch64",)),
}
"""Compiler with options, and what starts the program."""

B, H, N, S, D, DV = 2, 3, 21, 37, 19, 16
LENGTHS = (B * H * N * DV, B * H * N * D, B * H * S * D, B * H * S * DV, B * H, B * H * N * D, B * H * N * D)


def problem() -> tuple[Tensor, ...]:
    """alpha ``[H]``, q, k, v and the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, H, N, D), (B, H, S, D), (B, H, S, DV), (B, H, N, DV))
    return torch.tensor([1.25, 1.5, 2.0]), *(torch.randn(shape, generator=generator) for shape in shapes)


def expected() -> list[Tensor]:
    alpha, q, k, v, grad = problem()
    q, k, v = (t.double().requires_grad_() for t in (q, k, v))
    alphas = alpha.double().repeat(B, 1)[..., None, None].requires_grad_()
    weights = attn_plugins.functional.entmax_alpha(q @ k.mT / math.sqrt(D), alphas)
    out = weights @ v
    out.backward(grad.double())
    rows = problem()[1].double().requires_grad_()
    of_rows = attn_plugins.functional.entmax15(rows)
    of_rows.backward(problem()[1].double())
    results = (out, q.grad, k.grad, v.grad, alphas.grad, of_rows, rows.grad)
    return [t.detach().flatten() for t in results if t is not None]


@pytest.mark.parametrize("chain", CHAINS)
def test_another_compiler_or_processor_computes_the_same(chain: str, tmp_path: Path) -> None:
    compiler, runner = CHAINS[chain]
    for program in (compiler[0], *runner):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    kept = [flag for flag in build.FLAGS if flag not in ("-fPIC", "-shared")]
    sources = [str(Path(__file__).with_name("harness.c")), str(build.SOURCES / "rows.c")]
    command = [*compiler, *kept, "-I", str(build.SOURCES), *sources, "-o", str(tmp_path / "program"), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head = struct.pack("<6qf", B, H, N, S, D, DV, 1 / math.sqrt(D))
    (tmp_path / "in").write_bytes(head + b"".join(t.numpy().tobytes() for t in problem()))
    run = [*runner, str(tmp_path / "program"), str(tmp_path / "in"), str(tmp_path / "out")]
    subprocess.run(run, check=True, timeout=120)
    told = torch.frombuffer(bytearray((tmp_path / "out").read_bytes()), dtype=torch.float32)
    for ours, theirs in zip(told.split(LENGTHS), expected(), strict=True):
        torch.testing.assert_close(ours, theirs.float(), atol=2e-5, rtol=1e-4)


def test_the_program_for_neon_uses_it(tmp_path: Path) -> None:
    for program in ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objdump"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    kept = [flag for flag in build.FLAGS if flag != "-shared"]
    target = tmp_path / "rows.o"
    command = ["aarch64-linux-gnu-gcc", *kept, "-c", str(build.SOURCES / "rows.c"), "-o", str(target)]
    subprocess.run(command, check=True)
    listing = subprocess.run(["aarch64-linux-gnu-objdump", "-d", str(target)], capture_output=True, text=True).stdout
    assert "fsqrt\tv" in listing or "fmla\tv" in listing, "no vector instructions"
