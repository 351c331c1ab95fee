"""A normalizer with its parameters bound: what the attention dispatcher and patched modules hold."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import NORMALIZERS
from ..spec import Plugin, parse

__all__ = ["Normalizer", "bind", "build"]


@dataclass(frozen=True)
class Normalizer:
    """Maps scores ``[..., N, S]`` to weights of the same shape, each row in the simplex.

    Attributes:
        plugin: the name and parameters it was made from.
        function: ``f(scores, dim)`` with the parameters bound.
        alpha: entmax exponent (1.0 softmax, 1.5 entmax15, 2.0 sparsemax), or None if the function is not a
            member of that family. Fused kernels dispatch on it.
    """

    plugin: Plugin
    function: Callable[..., Tensor] = field(repr=False, compare=False)
    alpha: float | None = None

    def __call__(self, scores: Tensor, dim: int = -1) -> Tensor:
        return self.function(scores, dim=dim)

    def __reduce__(self) -> tuple[Any, ...]:
        # By name, so that a saved model loads wherever the normalizer is registered.
        return bind, (str(self.plugin),)


def bind(normalizer: str | Plugin) -> Normalizer:
    """Look a parameter-free normalizer up and bind its parameters.

    Args:
        normalizer: a name with optional parameters, e.g. ``"entmax:alpha=1.3"``.

    Raises:
        UnknownPluginError: the name is not registered.
        ValueError: a parameter is unknown or out of range, or the normalizer has learnable parameters
            (those need the number of heads: use ``patch``, or build its class and pass the module).
    """
    plugin = _only_normalizer(normalizer) if isinstance(normalizer, str) else normalizer
    return _bind(plugin)


@functools.lru_cache(maxsize=256)
def _bind(plugin: Plugin) -> Normalizer:
    entry = NORMALIZERS.get(plugin.name)
    if _is_module(entry.factory):
        raise ValueError(
            f"{plugin.name!r} has learnable parameters: pass an instance of {entry.factory.__name__}, "
            "or patch a model with it"
        )
    kwargs = plugin.kwargs
    function = functools.partial(entry.factory, **kwargs) if kwargs else entry.factory
    function(torch.zeros(1, 2), dim=-1)  # parameters out of range are refused here, before a model is touched
    alpha: Any = entry.alpha
    if isinstance(alpha, str):
        alpha = kwargs.get(alpha, inspect.signature(entry.factory).parameters[alpha].default)
    return Normalizer(plugin, function, None if alpha is None else float(alpha))


def build(plugin: Plugin, num_heads: int | None) -> Normalizer | nn.Module:
    """The normalizer for one attention layer: shared and stateless, or a module with this layer's parameters.

    Args:
        plugin: a normalizer's name and parameters.
        num_heads: heads of the layer; only normalizers with parameters need it.

    Raises:
        ValueError: a parameter is out of range, or the number of heads is needed and not known.
    """
    entry = NORMALIZERS.get(plugin.name)
    if not _is_module(entry.factory):
        return _bind(plugin)
    if num_heads is None:
        raise ValueError(f"{plugin.name!r} has one parameter per head, and the layer does not tell its number of heads")
    module = entry.factory(num_heads=num_heads, **plugin.kwargs)
    module.plugin = plugin
    return module


def _is_module(factory: Any) -> bool:
    return isinstance(factory, type) and issubclass(factory, nn.Module)


def _only_normalizer(text: str) -> Plugin:
    spec = parse(text)
    if spec.mechanisms:
        names = ", ".join(plugin.name for plugin in spec.mechanisms)
        raise ValueError(f"{text!r} names token mechanisms ({names}); here only a normalizer applies")
    return spec.normalizer
