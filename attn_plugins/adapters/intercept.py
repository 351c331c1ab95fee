"""Answer a module's call of ``F.scaled_dot_product_attention`` by :func:`attn_plugins.attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..attention import attention

__all__ = ["Intercept", "intercepted"]

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class Intercept(TorchFunctionMode):
    """Inside this context, attention uses ``normalizer``.

    It catches the call however the code names it (``F.``, ``torch.nn.functional.``, an import), is local to
    the thread, and is traced by torch.compile(fullgraph=True).

    Args:
        normalizer: ``(scores, dim=-1) -> weights``.
        softmax: also answer ``softmax`` over the last dimension, for code that has a path with materialised
            weights beside the fused one.
    """

    def __init__(self, normalizer: Callable[..., Tensor], softmax: bool = False) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.softmax = softmax

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs, normalizer=self.normalizer)
        if self.softmax and func in _SOFTMAX:
            return _softmax(self.normalizer, *args, **kwargs)
        return func(*args, **kwargs)


def _softmax(
    normalizer: Callable[..., Tensor],
    scores: Tensor,
    dim: int = -1,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return normalizer(scores if dtype is None else scores.to(dtype), dim=dim)


def intercepted(method: Callable[..., Any], softmax: bool = False) -> Callable[..., Any]:
    """``method`` of an attention module, run inside :class:`Intercept` with that module's normalizer."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with Intercept(self.attn_plugins_normalizer, softmax):
            return method(self, *args, **kwargs)

    run.__name__, run.__doc__ = method.__name__, method.__doc__
    run.__wrapped__ = method  # type: ignore[attr-defined]  # inspect.signature shows upstream's
    return run
