"""Answer the attention calls that a module's own code makes by :func:`attn_plugins.attention`."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..attention import attention

__all__ = ["Intercept", "intercepted"]

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


def _undispatched(function: Any) -> Any:
    """A torch function without its first step, which hands the whole call to the mode and then runs without it."""
    scope = {**function.__globals__, "has_torch_function": lambda tensors: False}
    del scope["__name__"]  # torch.compile would look names up in the module of that name instead of here
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_multi_head_attention_forward = _undispatched(F.multi_head_attention_forward)


class Intercept(TorchFunctionMode):
    """Inside this context, attention uses ``normalizer``.

    It catches the call however the code names it (``F.``, ``torch.nn.functional.``, an import), is local to
    the thread, and is traced by torch.compile(fullgraph=True).

    Args:
        normalizer: ``(scores, dim=-1) -> weights``.
        softmax: also answer ``softmax`` over the last dimension, for code that materialises the weights.
        heads: such scores come as ``[B * heads, N, S]``; None where they have a dimension for heads.
    """

    def __init__(self, normalizer: Callable[..., Tensor], softmax: bool = False, heads: int | None = None) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.softmax = softmax
        self.heads = heads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return attention(*args, **kwargs, normalizer=self.normalizer)
        if func is F.multi_head_attention_forward:
            with Intercept(self.normalizer, softmax=True, heads=args[4]):
                return _multi_head_attention_forward(*args, **kwargs)
        if self.softmax and func in _SOFTMAX and _over_last_dimension(*args, **kwargs):
            return self._weights(*args, **kwargs)
        return func(*args, **kwargs)

    def _weights(self, input: Tensor, dim: int, *rest: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        # F.softmax and torch.softmax agree on the first two positions only.
        dtype = next((value for value in rest if isinstance(value, torch.dtype)), dtype)
        scores = input if dtype is None else input.to(dtype)
        if self.heads is None:
            return self.normalizer(scores, dim=-1)
        return self.normalizer(scores.unflatten(0, (-1, self.heads)), dim=-1).flatten(0, 1)


def _over_last_dimension(input: Tensor, dim: int | None = None, *rest: Any, **kwargs: Any) -> bool:
    return dim is not None and dim % input.dim() == input.dim() - 1


def intercepted(method: Callable[..., Any], softmax: bool = False) -> Callable[..., Any]:
    """``method`` of an attention module, run inside :class:`Intercept` with that module's normalizer."""

    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        with Intercept(self.attn_plugins_normalizer, softmax):
            return method(self, *args, **kwargs)

    @functools.wraps(method)  # inspect.signature shows upstream's
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return inside(self, *args, **kwargs)
        # Under activation checkpointing torch.compile takes entering a mode for a side effect; it is left again.
        from torch._dynamo.utils import _disable_side_effect_safety_checks_for_current_subtracer as trusted

        return trusted(inside, self, *args, **kwargs)

    return run
