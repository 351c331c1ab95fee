"""The methods of a patched attention layer: run with their attention answered, and proved to have computed it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..attention.counting import answers, within
from ..errors import UnsupportedModelError
from ..swap import PREFIX
from ..torch_names import traceable, without_side_effect_checks
from .answer import NORMALIZER, TRACED, Answering, current, named, running
from .symbolic import recorded

__all__ = ["ANSWERED", "answered", "proved", "proved_on"]

ANSWERED = PREFIX + "answered"
"""Attribute of a patched layer: how many attention calls it has answered so far."""


def answered(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` of an attention module, run inside ``Answering`` with that module's normalizer."""

    def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
        mode = Answering(self, traced=True)
        TRACED.append(mode)
        try:
            with mode:
                out = method(self, *args, **kwargs)
        finally:
            TRACED.pop()
        mode.check()
        if mode.count == 0:
            raise UnsupportedModelError(_nothing(self))
        return out

    @functools.wraps(method)  # inspect.signature shows upstream's
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            # Under activation checkpointing torch.compile takes entering a mode for a side effect; it is left again.
            return without_side_effect_checks(traced, self, *args, **kwargs)
        outer = current()
        if outer is not None and outer.module is self:
            return method(self, *args, **kwargs)
        with running(self) as mode:
            out = recorded(self, functools.partial(method, self, *args, **kwargs), args, kwargs)
        mode.check()
        return out

    return traceable(run)


def proved(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` of a patched layer: every eager call answers attention, its own or of a layer inside, or raises."""

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        before, outer = answers(), within(self)
        try:
            out = forward(self, *args, **kwargs)
        finally:
            within(outer)
        given = answers() - before
        vars(self)[ANSWERED] = vars(self).get(ANSWERED, 0) + given
        if not given:
            raise UnsupportedModelError(_nothing(self))
        return out

    return run


def proved_on(module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a forward that is set on the instance ``module``."""

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        before = answers()
        out = forward(*args, **kwargs)
        if answers() == before and not torch.compiler.is_compiling():
            raise UnsupportedModelError(_nothing(module))
        return out

    run._attn_plugins_proved = True  # type: ignore[attr-defined]
    return run


def _nothing(module: nn.Module) -> str:
    return (
        f"{named(module)} is patched with {getattr(module, NORMALIZER)}, and this forward computed no attention that "
        "could be answered: its code was changed since, another library replaced a method, a softmax runs elsewhere, "
        "or a fused path or a branch without attention was taken. Unpatch this layer, or register an adapter for it "
        "(attn_plugins.register_adapter)"
    )
