"""Where a model's attention is: the layers that an adapter knows, and those that none does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn

from ..codebases import Adapter, adapter_for
from ..codebases.base import Layer
from ..codebases.recognise import analyse, is_torchs, scripted_attention
from ..errors import UnsupportedModelError
from ..swap import PREFIX, bare

__all__ = ["Layers", "Site", "Survey", "find_attention", "named_reasons", "select_layers", "survey"]

Layers = int | str | slice | Iterable[int | str] | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True)
class Site:
    """One attention layer of a model.

    Attributes:
        path: its name in the model.
        module: the layer.
        adapter: the adapter that knows it.
        layer: the class layer that the adapter puts on it.
        containers: modules above it that are patched with it, and their class layers.
        pooling: whether it is an attention pooling head.
    """

    path: str
    module: nn.Module
    adapter: Adapter
    layer: Layer
    containers: tuple[tuple[nn.Module, Layer], ...]
    pooling: bool


@dataclass(frozen=True)
class Survey:
    """All attention of a model, in the order of ``named_modules``.

    Attributes:
        layers: attention between tokens: what ``patch`` patches and what indices count.
        pooling: heads in which learned queries pool the tokens (timm's ``AttentionPoolLatent``, SigLIP's head).
            They read features and mix no tokens; they are patched only by name or predicate.
        unreached: modules that look like attention and that no adapter knows, and the reason, by path.
    """

    layers: list[Site]
    pooling: list[Site]
    unreached: dict[str, tuple[nn.Module, str]]


def survey(model: nn.Module) -> Survey:
    """Look through a model.

    Raises:
        UnsupportedModelError: it has no attention that can be patched, or is no module.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected a torch.nn.Module, got {type(model).__name__}: {model!r}")
    modules = {path: module for path, module in model.named_modules() if PREFIX not in path}
    sites = []
    for path, module in modules.items():
        found = adapter_for(module)
        if found is not None:
            above = [modules[prefix] for prefix in _prefixes(path)]
            sites.append(Site(path, module, *found, _containers(found[0], above), _pools(module, above)))
    reasons = {path: _unreached(path, module, sites) for path, module in modules.items()}
    unreached = {path: (modules[path], reason) for path, reason in reasons.items() if reason}
    if not sites:
        seen = sorted({f"{type(m).__module__}.{type(m).__qualname__}" for m in modules.values()})
        raise UnsupportedModelError(
            f"no attention that can be patched in {type(model).__qualname__}{named_reasons(unreached)}; module classes "
            f"seen: {', '.join(seen)}. "
            "Register an adapter with attn_plugins.register_adapter(attn_plugins.Adapter(...)) or the entry-point "
            "group 'attn_plugins.adapters'."
        )
    return Survey(
        [site for site in sites if not site.pooling],
        [site for site in sites if site.pooling],
        unreached,
    )


def find_attention(model: nn.Module) -> list[Site]:
    """Attention between tokens that an adapter knows, in the order of ``named_modules``.

    Raises:
        UnsupportedModelError: there is none.
    """
    return survey(model).layers


def _prefixes(path: str) -> list[str]:
    """Names of the modules above a path, the nearest first: ``a.b`` has ``a`` and the model itself."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in reversed(range(len(parts)))]


def _containers(adapter: Adapter, above: list[nn.Module]) -> tuple[tuple[nn.Module, Layer], ...]:
    return tuple(
        (module, Layer(adapter.name, index))
        for module in above
        for index, container in enumerate(adapter.around)
        if container.matches(bare(module))
    )


def _pools(module: nn.Module, above: list[nn.Module]) -> bool:
    # A pooling head that is patched on its own is what the caller means: it has nothing above it.
    return bool(above) and any("pool" in type(m).__name__.lower() for m in (module, above[0]))


def _unreached(path: str, module: nn.Module, sites: list[Site]) -> str:
    """Why a module that looks like attention is none to us; empty for what does not look like it."""
    cls = bare(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript, whose softmax cannot be answered" if scripted_attention(module) else ""
    if any(site.path == path for site in sites) or is_torchs(cls):
        return ""
    seen = analyse(module, cls)
    if seen.fused:
        return f"calls {' and '.join(seen.fused)}, which cannot be answered"
    if seen.missed:
        return seen.missed
    if any(_inside(site.path, path) or _inside(path, site.path) for site in sites):
        return ""
    if not list(module.children()) and not list(module.parameters()):
        return ""
    named = "attention" in cls.__name__.lower() or "attn" in cls.__name__.lower()
    return "no attention call that is known" if named else ""


def named_reasons(unreached: dict[str, tuple[nn.Module, str]]) -> str:
    """``": path (Class: reason), ..."``, or nothing."""
    named = (f"{path or 'the model'} ({bare(module).__name__}: {why})" for path, (module, why) in unreached.items())
    return f": {', '.join(named)}" if unreached else ""


def _inside(path: str, outer: str) -> bool:
    return not outer or path.startswith(outer + ".")


def select_layers(found: Survey, layers: Layers) -> list[Site]:
    """The sites that ``layers`` names (see ``attn_plugins.patch``).

    Raises:
        UnsupportedModelError: nothing is named and the model has pooling heads only.
        ValueError: an index or name that does not exist, or nothing selected.
    """
    sites, everything = found.layers, [*found.layers, *found.pooling]
    if layers is None:
        if not sites:
            raise UnsupportedModelError(
                f"the only attention that can be patched pools tokens: {_paths(found.pooling)}; "
                "name it with layers= if that is what you want"
            )
        return sites
    if isinstance(layers, slice):
        chosen = sites[layers]
    elif callable(layers):
        chosen = [site for site in everything if layers(site.path, site.module)]
    else:
        keys = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
        wanted = {site.path for key in keys for site in _named(found, key)}
        chosen = [site for site in everything if site.path in wanted]
    if not chosen:
        raise ValueError(f"layers={layers!r} selects none of the {len(sites)} attention layers: {_paths(sites)}")
    return chosen


def _named(found: Survey, key: object) -> list[Site]:
    sites = found.layers
    if isinstance(key, str):
        named = [s for s in (*sites, *found.pooling) if s.path == key or s.path.startswith(key + ".")]
        if named:
            return named
    elif isinstance(key, Integral) and not isinstance(key, bool) and -len(sites) <= int(key) < len(sites):
        return [sites[int(key)]]  # NumPy's integers are Integral too
    raise ValueError(f"there is no attention layer {key!r}; there are {len(sites)}: {_paths(sites)}")


def _paths(sites: list[Site]) -> str:
    return ", ".join(f"{i} {site.path or '(the model itself)'}" for i, site in enumerate(sites))
