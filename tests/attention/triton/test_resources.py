"""The kernels compile to machine code, ahead of time and without a GPU, within a multiprocessor's resources."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

# A process of its own: here the kernels may be the interpreter's.
CODE = """
import json, sys
from attn_plugins.attention.triton import resources, tuning

found = []
for capability, dtype, keys, dim, family, flags in json.loads(sys.argv[1]):
    itemsize, length = {"bf16": 2, "fp32": 4}[dtype], tuning.length_class(keys)
    backward = ("short",) if tuning.whole_head_fits(length, dim, itemsize, capability) else ("queries", "keys")
    for kernel in ("forward", *backward):
        config = tuning.choices(kernel, length, dim, itemsize, flags.get("PACKED", False))[0]
        own = {k: v for k, v in flags.items() if k != "ALPHA_GRAD" or kernel == "queries"}
        r = resources.compile_kernel(kernel, config, length, dim, dtype, capability, family, **own)
        found.append((kernel, capability, dtype, keys, r.registers, r.spilled, r.shared, r.instructions))
print(json.dumps(found))
"""
CASES = [
    (90, "bf16", 197, 64, "entmax15", {}),
    (90, "bf16", 1370, 64, "entmax15", {"MASKED": True}),
    (90, "bf16", 257, 64, "entmax15", {"PACKED": True}),
    (86, "bf16", 197, 64, "entmax15", {}),
]


@pytest.fixture(scope="module")
def compiled() -> list[list[Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", CODE, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    out: list[list[Any]] = json.loads(done.stdout)
    return out


def test_first_choices_fit(compiled: list[list[Any]]) -> None:
    limits = {86: 99 * 1024, 90: 227 * 1024}
    assert len(compiled) >= 2 * len(CASES)
    for kernel, capability, _, keys, registers, spilled, shared, _ in compiled:
        assert registers <= 255 and shared <= limits[capability], (kernel, capability, keys, shared)
        # A few spilled words outside the loops are fine; kilobytes would mean a tile that lives in memory.
        assert spilled <= 256, (kernel, capability, keys, spilled)


def test_hopper_gets_its_own_matrix_instructions(compiled: list[list[Any]]) -> None:
    counts = [instructions for _, capability, *_, instructions in compiled if capability == 90]
    assert counts and all(c["HGMMA"] > 0 and c["HMMA"] == 0 for c in counts)
