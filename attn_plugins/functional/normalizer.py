"""A normalizer with its parameters bound: what the attention dispatcher and patched modules hold."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..params import SCALE, scaled_by_us
from ..registry import NORMALIZERS
from ..spec import Plugin, parse
from .scale import ConstantScale, HeadScale, LengthScale

__all__ = ["Normalizer", "bind", "build", "keep_scales"]


@dataclass(frozen=True)
class Normalizer:
    """Maps scores ``[..., N, S]`` to weights of the same shape, each row in the simplex.

    Attributes:
        plugin: the name and parameters it was made from.
        function: ``f(scores, dim)`` with the parameters bound.
        alpha: entmax exponent (1.0 softmax, 1.5 entmax15, 2.0 sparsemax), or None if the function is not a
            member of that family. Fused kernels dispatch on it.
        scale: factor on the scores, which ``function`` does not apply.
        inner: the same without a factor; None where it has none.
    """

    plugin: Plugin
    function: Callable[..., Tensor] = field(repr=False, compare=False)
    alpha: float | None = None
    scale: float = 1.0
    inner: Normalizer | None = field(default=None, repr=False, compare=False)

    def __call__(self, scores: Tensor, dim: int = -1) -> Tensor:
        return self.function(scores if self.inner is None else scores * self.scale, dim=dim)

    def __deepcopy__(self, memo: dict[int, Any]) -> Normalizer:
        return self  # nothing in it changes, and copying asks for less than pickling

    def __reduce__(self) -> tuple[Any, ...]:
        # By name, so that a saved model loads wherever the normalizer is registered.
        return bind, (str(self.plugin) if self.plugin.factory is None else self.plugin,)


def bind(normalizer: str | Plugin) -> Normalizer:
    """Look a parameter-free normalizer up and bind its parameters.

    Args:
        normalizer: a name with optional parameters, e.g. ``"entmax:alpha=1.3"``.

    Raises:
        UnknownPluginError: the name is not registered.
        ValueError: a parameter is unknown or out of range, what is registered returns no weights, or the normalizer
            has learnable parameters (those need the number of heads: use ``patch``, or build its class and pass the
            module).
    """
    plugin = _only_normalizer(normalizer) if isinstance(normalizer, str) else normalizer
    return _bind(plugin) if plugin.factory is None else _made_of(plugin, plugin.factory, None)


@functools.lru_cache(maxsize=256)
def _bind(plugin: Plugin) -> Normalizer:
    entry = NORMALIZERS.get(plugin.name)
    alpha: Any = entry.alpha
    if isinstance(alpha, str):
        alpha = plugin.kwargs.get(alpha, inspect.signature(entry.factory).parameters[alpha].default)
    return _made_of(plugin, entry.factory, alpha)


NORMALIZERS.caches.append(_bind.cache_clear)


def _made_of(plugin: Plugin, factory: Any, alpha: float | None) -> Normalizer:
    if _is_module(factory):
        raise ValueError(
            f"{plugin.name!r} has learnable parameters: pass an instance of {factory.__name__}, "
            "or patch a model with it"
        )
    plain, scale = _apart(plugin, factory)
    if isinstance(scale, str):
        raise ValueError(f"{str(plugin)!r} has a scale for each head, which is a layer's own: patch a model with it")
    function = functools.partial(factory, **plain.kwargs) if plain.params else factory
    _try(plugin, function)
    made = Normalizer(plain, function, None if alpha is None else float(alpha))
    return made if scale is None else Normalizer(plugin, function, made.alpha, scale, made)


def _apart(plugin: Plugin, factory: Any) -> tuple[Plugin, float | str | None]:
    """The plugin without the factor on its scores, and the factor; None where it has none of ours."""
    if SCALE not in plugin.kwargs or not scaled_by_us(factory):
        return plugin, None
    scale = plugin.kwargs[SCALE]
    plain = Plugin(plugin.name, tuple(p for p in plugin.params if p[0] != SCALE), plugin.factory)
    return plain, scale if isinstance(scale, str) else float(scale)  # type: ignore[arg-type]  # no Ramp in a layer


def _try(plugin: Plugin, function: Callable[..., Any]) -> None:
    """Refuse parameters out of range, and what is no normalizer, before a model is touched."""
    scores = torch.zeros(1, 2)
    try:
        weights = function(scores, dim=-1)
    except TypeError as error:
        raise ValueError(f"{plugin.name!r} cannot be called as f(scores, dim=-1): {error}") from error
    if not isinstance(weights, Tensor) or weights.shape != scores.shape:
        got = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"{plugin.name!r} returns {got} for scores of shape (1, 2); it must return their weights")


def build(plugin: Plugin, num_heads: int | None, head_dim: int | None = None) -> Normalizer | nn.Module:
    """The normalizer for one attention layer: shared and stateless, or a module with this layer's parameters.

    Args:
        plugin: a normalizer's name and parameters, or a callable with its name.
        num_heads: heads of the layer; only normalizers with parameters need it.
        head_dim: channels of a head's query; only ``scale=asentmax`` needs it.

    Raises:
        ValueError: a parameter is out of range, what is registered returns no weights, the callable is a module
            and not its class, or the number of heads is needed and not known.
    """
    factory = NORMALIZERS.get(plugin.name).factory if plugin.factory is None else plugin.factory
    plain, scale = _apart(plugin, factory)
    if scale is not None and (isinstance(scale, str) or _is_module(factory)):
        scaled: nn.Module = _scaled(build(plain, num_heads), scale, plugin, num_heads, head_dim)
        scaled.plugin = plugin  # type: ignore[assignment]
        return scaled
    if isinstance(factory, nn.Module):
        raise ValueError(
            f"{plugin.name!r} is one module, which all layers would share; pass its class, which is built for each "
            "layer as cls(num_heads=H)"
        )
    if not _is_module(factory):
        return bind(plugin)
    if num_heads is None:
        raise ValueError(f"{plugin.name!r} has one parameter per head, and the layer does not tell its number of heads")
    try:
        module: nn.Module = factory(num_heads=num_heads, **plugin.kwargs)
    except TypeError as error:
        raise ValueError(f"{plugin.name!r} cannot be built as {factory.__name__}(num_heads=H): {error}") from error
    module.plugin = plugin  # type: ignore[assignment]
    return module


def _scaled(inner: Any, scale: float | str, plugin: Plugin, num_heads: int | None, head_dim: int | None) -> Any:
    """``inner`` behind a factor that is a module."""
    if not isinstance(scale, str):
        return ConstantScale(inner, scale)
    if num_heads is None:
        raise ValueError(f"{str(plugin)!r} has one scale per head, and the layer does not tell its number of heads")
    if scale != "asentmax":
        return HeadScale(inner, num_heads, learnable=scale == "learnable")
    if head_dim is None:
        raise ValueError(f"{str(plugin)!r} reads the query, and the layer does not tell the width of its heads")
    return LengthScale(inner, num_heads, head_dim)


def keep_scales(before: object, after: object) -> None:
    """Give ``after`` the factors that ``before`` has for each head, where it is the same normalizer behind them."""
    if isinstance(before, HeadScale) and isinstance(after, HeadScale) and _named(before) == _named(after):
        after.log_scale.data.copy_(before.log_scale.data)


def _named(scaled: HeadScale) -> object:
    return getattr(scaled.inner, "plugin", None)


def _is_module(factory: Any) -> bool:
    return isinstance(factory, type) and issubclass(factory, nn.Module)


def _only_normalizer(text: str) -> Plugin:
    spec = parse(text)
    if spec.mechanisms:
        names = ", ".join(plugin.name for plugin in spec.mechanisms)
        raise ValueError(f"{text!r} names token mechanisms ({names}); here only a normalizer applies")
    return spec.normalizer
