"""``describe``: what is patched, where, by which adapter, and which backend computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import swap
from ..attention import choose_backend
from ..attention.call import AttentionCall
from ..codebases.answer import NORMALIZER
from ..mechanisms import applied_mechanisms
from ..spec import Plugin
from ..text import columns
from .record import lost
from .sites import Site, survey

__all__ = ["Description", "LayerInfo", "describe"]


@dataclass(frozen=True)
class LayerInfo:
    """One line of ``describe``.

    Attributes:
        path: the module's name in the model.
        cls: its class.
        adapter: the adapter that knows it; None for attention that none knows.
        spec: the normalizer in use; None where the layer is not patched.
        backend: what computes it on the layer's device and dtype (without masks or dropout).
        note: "pooling head"; "patch lost" and how, where another library has undone the patch since; "unreached" and
            why, for what looks like attention and is not known; the class that another library made of a patched one.
    """

    path: str
    cls: str
    adapter: str | None
    spec: str | None
    backend: str | None
    note: str = ""


class Description(list[LayerInfo]):
    """The lines of ``describe``; prints as a table.

    Attributes:
        mechanisms: the token mechanisms of the model.
    """

    mechanisms: tuple[Plugin, ...] = ()

    def __str__(self) -> str:
        head = ("layer", "class", "adapter", "spec", "backend", "")
        rows = [
            (x.path or "(model)", x.cls, x.adapter or "", x.spec or "(not patched)", x.backend or "", x.note)
            for x in self
        ]
        return "\n".join([*columns([head, *rows]), *(f"token mechanism: {plugin}" for plugin in self.mechanisms)])


def describe(model: nn.Module) -> Description:
    """What is patched, where, by which adapter, and which backend will compute it.

    Attention layers come first, in the order that ``layers=`` counts them; then pooling heads and attention
    that no adapter knows.

    Args:
        model: any module, patched or not; it may be wrapped (DDP). It is not run.

    Returns:
        A line per layer, ``spec`` None where it is not patched, and ``note`` for what is not as it should be; it prints
        as a table.

    Raises:
        UnsupportedModelError: the model has no attention that can be patched.
    """
    found, gone = survey(model), lost(model)
    known = {site.path for site in (*found.layers, *found.pooling)}
    description = Description(
        [
            *(_line(site, "", gone) for site in found.layers),
            *(_line(site, "pooling head", gone) for site in found.pooling),
            *(
                LayerInfo(path, type(module).__qualname__, None, None, None, f"unreached: {reason}")
                for path, (module, reason) in found.unreached.items()
            ),
            *(
                LayerInfo(path, _class_at(model, path), None, None, None, f"patch lost: {reason}")
                for path, reason in gone.items()
                if path not in known
            ),
        ]
    )
    description.mechanisms = applied_mechanisms(model)
    return description


def _line(site: Site, note: str, gone: dict[str, str]) -> LayerInfo:
    module = site.module
    normalizer = None if site.path in gone else getattr(module, NORMALIZER, None)
    if site.path in gone:
        note = f"patch lost: {gone[site.path]}"
    elif normalizer is not None and swap.bare(module) is type(module):
        note = f"as {type(module).__qualname__}, a class made of the patched one"
    return LayerInfo(
        site.path,
        swap.bare(module).__qualname__,
        site.adapter.name,
        None if normalizer is None else str(normalizer.plugin),
        None if normalizer is None else _backend(module, normalizer),
        note,
    )


def _class_at(model: nn.Module, path: str) -> str:
    module = dict(model.named_modules()).get(path)
    return "" if module is None else type(module).__qualname__


def _backend(module: nn.Module, normalizer: Any) -> str:
    weight = next(module.parameters(), torch.empty(0))
    alpha = getattr(normalizer, "alpha", None)
    heads = len(alpha) if isinstance(alpha, torch.Tensor) else 1
    q = torch.empty(1, heads, 2, 64, device=weight.device, dtype=weight.dtype)
    return choose_backend(AttentionCall(q, q, q, normalizer, alpha)).name
