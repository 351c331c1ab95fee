"""``patch``, ``unpatch``, ``patched``, ``describe``: plugins on a model, in place and all-or-nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from .adapters import Adapter, adapter_for
from .adapters.base import patched_class, unpatched_class
from .attention import choose_backend
from .attention.call import AttentionCall
from .errors import UnsupportedModelError
from .functional.normalizer import build
from .registry import MECHANISMS
from .spec import Spec, parse
from .stamp import stamp

__all__ = ["Description", "LayerInfo", "describe", "patch", "patched", "unpatch"]

logger = logging.getLogger("attn_plugins")

M = TypeVar("M", bound=nn.Module)
Layers = int | str | slice | Iterable[int | str] | Callable[[str, nn.Module], bool] | None

PREFIX = "attn_plugins_"
NORMALIZER = PREFIX + "normalizer"
IN_BLOCK = PREFIX + "in_block"


def patch(model: M, spec: str | Spec, layers: Layers = None) -> M:
    """Replace the attention normalizer of a model, and add token mechanisms, in place.

    Parameters, buffers, hooks and attributes stay; modules only change their class to a subclass of it.
    Everything is checked before the first module is changed. Patching again replaces what an earlier patch
    did to the chosen layers, and patching twice with the same spec changes nothing.

    Args:
        model: any module with attention that an adapter knows, e.g. a ViT of DINOv1/v2/v3, timm, transformers
            or torchvision; it may be wrapped (DDP) or be a single attention module.
        spec: e.g. ``"entmax15"``, ``"entmax_alpha:init=1.2"``, ``"entmax15+registers:num=4"``.
        layers: which attention layers get the normalizer, in the order of ``describe``: an index, a slice, an
            iterable of indices or names, the name of a module (itself or one that contains the attention,
            ``"blocks.3"``), or a predicate ``(name, module) -> bool``. None means all.

    Returns:
        ``model``.

    Raises:
        UnknownPluginError: the spec has a name that is not registered.
        UnsupportedModelError: the model has no attention that can be patched, or an option of it is not supported.
        ValueError: a bad spec, a parameter out of range, or layers that do not exist.
    """
    parsed = parse(spec)
    found = find_attention(model)
    chosen = select_layers(found, layers)
    normalizers = []
    for site in chosen:
        site.adapter.check(site.module)
        normalizers.append(_build_normalizer(parsed, site))
    plans = [MECHANISMS.get(p.name)(**p.kwargs).plan(model) for p in parsed.mechanisms]

    for site, normalizer in zip(chosen, normalizers, strict=True):
        _restore(site)
        _apply(site, normalizer)
    for plan in plans:
        plan()
    normalizers_now = (getattr(site.module, NORMALIZER, None) for site in found)
    stamp(model, parsed, [None if n is None else str(n.plugin) for n in normalizers_now])
    logger.info("patched %d of %d attention layers with %s", len(chosen), len(found), parsed)
    return model


def unpatch(model: M) -> M:
    """Undo :func:`patch`: the original classes again, plugin parameters removed, outputs as before bit for bit."""
    for module in list(model.modules()):
        base = unpatched_class(type(module))
        if base is not type(module):
            module.__class__ = base
        for name in [name for name in (*vars(module), *module._modules) if name.startswith(PREFIX)]:
            delattr(module, name)
    return model


@contextlib.contextmanager
def patched(model: M, spec: str | Spec, layers: Layers = None) -> Iterator[M]:
    """Context in which ``model`` is patched; what it was before, patched or not, comes back at the end.

    Args and errors are those of :func:`patch`.
    """
    before = [(module, type(module), _plugin_attributes(module)) for module in model.modules()]
    try:
        yield patch(model, spec, layers)
    finally:
        unpatch(model)
        for module, cls, attributes in before:
            module.__class__ = cls
            for name, value in attributes.items():
                setattr(module, name, value)


@dataclass(frozen=True)
class Site:
    """One attention layer of a model."""

    path: str
    module: nn.Module
    adapter: Adapter
    parent: nn.Module | None


def find_attention(model: nn.Module) -> list[Site]:
    """Attention layers that an adapter knows, in the order of ``named_modules``.

    Raises:
        UnsupportedModelError: there is none.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected a torch.nn.Module, got {type(model).__name__}: {model!r}")
    modules = dict(model.named_modules())
    sites = []
    for path, module in modules.items():
        adapter = adapter_for(unpatched_class(type(module)))
        if adapter is not None:
            parent = modules[path.rpartition(".")[0]] if path else None
            sites.append(Site(path, module, adapter, parent))
    if not sites:
        seen = sorted({f"{type(m).__module__}.{type(m).__qualname__}" for m in modules.values()})
        raise UnsupportedModelError(
            f"no attention that can be patched in {type(model).__qualname__}; module classes seen: {', '.join(seen)}. "
            "Register an adapter with attn_plugins.register_adapter(attn_plugins.Adapter(...)) or the entry-point "
            "group 'attn_plugins.adapters'."
        )
    return sites


def select_layers(sites: list[Site], layers: Layers) -> list[Site]:
    """The sites that ``layers`` names (see :func:`patch`).

    Raises:
        ValueError: an index or name that does not exist, or nothing selected.
    """
    if layers is None:
        return sites
    if isinstance(layers, slice):
        chosen = sites[layers]
    elif callable(layers):
        chosen = [site for site in sites if layers(site.path, site.module)]
    else:
        keys = [layers] if isinstance(layers, (int, str)) else list(layers)
        wanted = {index for key in keys for index in _indices(sites, key)}
        chosen = [site for index, site in enumerate(sites) if index in wanted]
    if not chosen:
        raise ValueError(f"layers={layers!r} selects none of the {len(sites)} attention layers: {_paths(sites)}")
    return chosen


def _indices(sites: list[Site], key: int | str) -> list[int]:
    if isinstance(key, str):
        found = [i for i, site in enumerate(sites) if site.path == key or site.path.startswith(key + ".")]
        if found:
            return found
    elif isinstance(key, int) and -len(sites) <= key < len(sites):
        return [key % len(sites)]
    raise ValueError(f"there is no attention layer {key!r}; there are {len(sites)}: {_paths(sites)}")


def _paths(sites: list[Site]) -> str:
    return ", ".join(f"{i} {site.path or '(the model itself)'}" for i, site in enumerate(sites))


def _build_normalizer(spec: Spec, site: Site) -> Any:
    normalizer = build(spec.normalizer, site.adapter.num_heads(site.module))
    current = getattr(site.module, NORMALIZER, None)
    if isinstance(normalizer, nn.Module):
        if getattr(current, "plugin", None) == spec.normalizer:
            return current  # patching again with the same spec keeps what was learned
        weight = next(site.module.parameters(), None)
        if weight is not None:
            normalizer.to(weight.device)
        normalizer.train(site.module.training)
    return normalizer


def _apply(site: Site, normalizer: Any) -> None:
    parent = site.adapter.parent
    if parent is not None and site.parent is not None:
        parent_base = unpatched_class(type(site.parent))
        if site.adapter.parent_matches(parent_base):
            site.parent.__class__ = patched_class(parent_base, parent)
            setattr(site.module, IN_BLOCK, True)
    site.module.__class__ = patched_class(unpatched_class(type(site.module)), site.adapter)
    setattr(site.module, NORMALIZER, normalizer)


def _restore(site: Site) -> None:
    for name in _plugin_attributes(site.module):
        delattr(site.module, name)


def _plugin_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: getattr(module, name) for name in (*vars(module), *module._modules) if name.startswith(PREFIX)}


@dataclass(frozen=True)
class LayerInfo:
    """One line of :func:`describe`.

    Attributes:
        path: the module's name in the model.
        cls: its class, without the patch.
        adapter: the adapter that knows it.
        spec: the normalizer in use; None where the layer is not patched.
        backend: what computes it on the layer's device and dtype (without masks or dropout).
    """

    path: str
    cls: str
    adapter: str
    spec: str | None
    backend: str | None


class Description(list[LayerInfo]):
    """The lines of :func:`describe`; prints as a table."""

    def __str__(self) -> str:
        head = ("layer", "class", "adapter", "spec", "backend")
        rows = [(x.path, x.cls, x.adapter, x.spec or "(not patched)", x.backend or "") for x in self]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(5)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in [head, *rows])


def describe(model: nn.Module) -> Description:
    """What is patched, where, by which adapter, and which backend will compute it.

    Raises:
        UnsupportedModelError: the model has no attention that can be patched.
    """
    lines = []
    for site in find_attention(model):
        normalizer = getattr(site.module, NORMALIZER, None)
        lines.append(
            LayerInfo(
                site.path,
                unpatched_class(type(site.module)).__qualname__,
                site.adapter.name,
                None if normalizer is None else str(normalizer.plugin),
                None if normalizer is None else _backend(site.module, normalizer),
            )
        )
    return Description(lines)


def _backend(module: nn.Module, normalizer: Any) -> str:
    weight = next(module.parameters(), torch.empty(0))
    q = torch.empty(1, 1, 2, 64, device=weight.device, dtype=weight.dtype)
    return choose_backend(AttentionCall(q, q, q, normalizer, getattr(normalizer, "alpha", None))).NAME
