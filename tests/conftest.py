"""Before anything else is collected: without a GPU, Triton's kernels are tested in its interpreter.

That has to be chosen before triton is imported, and timm, among others, imports it. The variable does not stay:
with it, the dispatcher would take the interpreter for CPU tensors.
"""

import importlib.util
import os

import torch

if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language  # noqa: F401

    del os.environ["TRITON_INTERPRET"]
