"""What computes attention: a typed record of each kernel, and how others are added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..registry import Registry
from .call import AttentionCall

__all__ = ["BACKENDS", "Backend", "register_backend"]


def _everything(call: AttentionCall) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """A kernel for attention.

    Attributes:
        name: what ``attention(backend=...)`` and ``describe`` call it.
        run: from a call to its output ``[..., H, N, Dv]``, differentiable. It is given what ``unsupported`` let pass.
        unsupported: why it cannot run a call, for messages ("it has no dropout"), or None where it can. It is asked at
            every call, also while ``torch.compile`` traces, and looks at nothing but shapes, strides, dtypes, devices,
            ``requires_grad`` and numbers.
        packed: whether ``run`` takes packed batches (``call.lengths``); otherwise it gets one call per run of equally
            long sequences.
    """

    name: str
    run: Callable[[AttentionCall], Tensor]
    unsupported: Callable[[AttentionCall], str | None] = _everything
    packed: bool = False


BACKENDS: Registry[Backend] = Registry("backend", "attn_plugins.backends")
"""The last one registered is asked first: other people's, then ``sdpa``, ``cpu``, ``triton`` and ``reference``."""


def register_backend(backend: Backend) -> Backend:
    """Make a kernel known: ``attention`` and every patched model use it for each call that it can run.

    Of several that can, the one registered last is used; those of this package come after all others, in the order
    ``sdpa``, ``cpu``, ``triton``, ``reference``. Packages may also name a ``Backend`` in the entry-point group
    ``attn_plugins.backends``.

    Args:
        backend: its name is the one that ``attention(..., backend=)`` takes.

    Returns:
        The same record.

    Raises:
        ValueError: the name is taken, or is "auto".

    Example:
        >>> def unsupported(call):
        ...     return None if call.alpha == 2.0 and call.query.is_cuda else "it computes sparsemax on CUDA"
        >>> attn_plugins.register_backend(attn_plugins.Backend("mine", run, unsupported))
    """
    if backend.name.lower() == "auto":
        raise ValueError("a backend cannot be called 'auto': that is how attention chooses one")
    return BACKENDS.register(backend.name, backend)
