"""Models as programs: patched attention in plain torch operations, for tracers, exporters and ONNX."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from .. import swap
from ..errors import UnsupportedModelError
from ..functional import plain

__all__ = ["exportable"]

M = TypeVar("M", bound=nn.Module)


@contextlib.contextmanager
def exportable(model: M) -> Iterator[M]:
    """Context in which patched attention is computed by torch's own operations alone, to be exported.

    No custom operator, ``autograd.Function`` or C kernel runs inside, so what is recorded there loads and runs where
    this package is not installed:

        with attn_plugins.exportable(model):
            program = torch.export.export(model, (images,))            # torch.export.save(program, "model.pt2")
            torch.onnx.export(model, (images,), "model.onnx", dynamo=True)
            traced = torch.jit.trace(model, images)                    # traced.save("model.pt")
            graph = torch.fx.symbolic_trace(model.blocks[0].attn)

    softmax is ``F.scaled_dot_product_attention``. The entmax family is solved by sorting (alpha 1.5 and 2) or by a
    fixed number of halvings, and two Newton steps (``attn_plugins.functional.plain``): in float32 less than 1e-6
    from the exact weights for entmax15 and sparsemax, 2e-6 for alpha >= 1.05, and 1e-5 below that. Other normalizers
    run as they are, and export if torch can export them. Gradients are those of the kernels.

    Outside, ``torch.jit.trace``, ``torch.onnx.export`` and forward-mode derivatives take the same operations by
    themselves; ``torch.export`` records this package's operators, and a file of it needs ``import attn_plugins`` to
    load; ``torch.fx`` is refused. ``torch.jit.script`` compiles the source of upstream's classes, which computes
    softmax, and is refused everywhere. ``torch.fx`` follows attention that calls
    ``F.scaled_dot_product_attention``; a softmax between two products is refused there, since proxies hide it.

    Args:
        model: a patched model, in train or eval mode; nothing on it is changed. Other patched models of the process
            compute with plain operations too meanwhile.

    Returns:
        ``model``.

    Raises:
        UnsupportedModelError: no layer of ``model`` is patched.
    """
    if not any(swap.is_patched(module) for module in model.modules()):
        raise UnsupportedModelError(
            f"no layer of this {type(model).__qualname__} is patched, so it exports as it is, with its own attention; "
            "patch it first if it should not: attn_plugins.patch(model, 'entmax15')"
        )
    with plain.computed():
        yield model
