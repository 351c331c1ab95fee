"""``describe``: what is patched, where, by which adapter, and which backend computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..attention import choose_backend
from ..attention.call import AttentionCall
from ..codebases.base import NORMALIZER, unpatched_class
from ..mechanisms import applied_mechanisms
from ..spec import Plugin
from .sites import Site, survey

__all__ = ["Description", "LayerInfo", "describe"]


@dataclass(frozen=True)
class LayerInfo:
    """One line of :func:`describe`.

    Attributes:
        path: the module's name in the model.
        cls: its class.
        adapter: the adapter that knows it; None for attention that none knows.
        spec: the normalizer in use; None where the layer is not patched.
        backend: what computes it on the layer's device and dtype (without masks or dropout).
        note: "pooling head" or "no adapter", for attention that ``patch`` leaves alone unless it is named.
    """

    path: str
    cls: str
    adapter: str | None
    spec: str | None
    backend: str | None
    note: str = ""


class Description(list[LayerInfo]):
    """The lines of :func:`describe`; prints as a table.

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
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in [head, *rows]]
        return "\n".join([*lines, *(f"token mechanism: {plugin}" for plugin in self.mechanisms)])


def describe(model: nn.Module) -> Description:
    """What is patched, where, by which adapter, and which backend will compute it.

    Attention layers come first, in the order that ``layers=`` counts them; then pooling heads and attention
    that no adapter knows.

    Raises:
        UnsupportedModelError: the model has no attention that can be patched.
    """
    found = survey(model)
    description = Description(
        [
            *(_line(site, "") for site in found.layers),
            *(_line(site, "pooling head") for site in found.pooling),
            *(
                LayerInfo(path, type(module).__qualname__, None, None, None, "no adapter")
                for path, module in found.unreached.items()
            ),
        ]
    )
    description.mechanisms = applied_mechanisms(model)
    return description


def _line(site: Site, note: str) -> LayerInfo:
    normalizer = getattr(site.module, NORMALIZER, None)
    return LayerInfo(
        site.path,
        unpatched_class(type(site.module)).__qualname__,
        site.adapter.name,
        None if normalizer is None else str(normalizer.plugin),
        None if normalizer is None else _backend(site.module, normalizer),
        note,
    )


def _backend(module: nn.Module, normalizer: Any) -> str:
    weight = next(module.parameters(), torch.empty(0))
    alpha = getattr(normalizer, "alpha", None)
    heads = len(alpha) if isinstance(alpha, torch.Tensor) else 1
    q = torch.empty(1, heads, 2, 64, device=weight.device, dtype=weight.dtype)
    return choose_backend(AttentionCall(q, q, q, normalizer, alpha)).NAME
