"""Notice Vision Transformers at the end of their construction.

That is the one moment that every trainer has: nothing holds the parameters yet, no optimizer, no DDP, no FSDP, no
averaged copy, and what a plugin learns is trained, sharded and averaged like the rest.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ...codebases import CODEBASES

__all__ = ["is_vit_class", "patch_as_built"]


def is_vit_class(cls: type) -> bool:
    """Whether a class's constructor, or an inherited one, makes the parts that a codebase's ViTs have.

    Those of DINO, DINOv2, DINOv3, lightly-train and timm (EVA and its kin included) have ``patch_embed`` and
    ``blocks``.
    """
    wanted = {codebase.constructor for codebase in CODEBASES.values() if codebase.constructor}
    found = [_names(vars(base).get("__init__")) for base in cls.__mro__]
    return any(names.issuperset(parts) for names in found for parts in wanted)


def _names(constructor: Any) -> set[str]:
    function = inspect.unwrap(constructor) if callable(constructor) else None
    return set(function.__code__.co_names) if isinstance(function, types.FunctionType) else set()


@contextlib.contextmanager
def patch_as_built(built: Callable[[nn.Module], None]) -> Iterator[None]:
    """Within this context ``built(model)`` is called with every ViT whose constructor has just finished.

    Classes that exist already are reached, and those that are defined while the context is open.
    """
    wrapped: list[tuple[type, Any]] = []
    constructing = threading.local()

    def wrap(cls: type) -> None:
        original = vars(cls).get("__init__")
        if original is None or not is_vit_class(cls):
            return

        @functools.wraps(original)
        def construct(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            if getattr(constructing, "model", None) is self:  # a base class's part of the same construction
                original(self, *args, **kwargs)
                return
            outer = getattr(constructing, "model", None)
            constructing.model = self
            try:
                original(self, *args, **kwargs)
            finally:
                constructing.model = outer
            built(self)

        wrapped.append((cls, original))
        cls.__init__ = construct  # type: ignore[misc]

    def on_new_class(cls: type, **kwargs: Any) -> None:
        super(nn.Module, cls).__init_subclass__(**kwargs)  # type: ignore[misc]
        wrap(cls)

    for cls in _subclasses(nn.Module):
        wrap(cls)
    nn.Module.__init_subclass__ = classmethod(on_new_class)  # type: ignore[arg-type, assignment]
    try:
        yield
    finally:
        del nn.Module.__init_subclass__
        for cls, original in reversed(wrapped):
            cls.__init__ = original


def _subclasses(cls: type) -> list[type]:
    found: set[type] = set()
    waiting = [cls]
    while waiting:
        new: set[type] = set(waiting.pop().__subclasses__()) - found
        found |= new
        waiting += new
    return list(found)
