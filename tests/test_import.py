"""``import attn_plugins`` needs torch alone and costs little more than it."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import sys, time, json
import torch
before, start = set(sys.modules), time.perf_counter()
import attn_plugins
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in set(sys.modules) - before})]))
"""


def test_nothing_but_the_standard_library_is_loaded_with_torch() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120)
    seconds, loaded = json.loads(done.stdout)
    assert set(loaded) - set(sys.stdlib_module_names) <= {"attn_plugins"} | {n for n in loaded if n.startswith("__")}
    # Torch itself takes seconds; measured: 0.16 s with both cores busy. The bound is for slower machines.
    assert seconds < 1.5
