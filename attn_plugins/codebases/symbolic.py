"""What ``torch.fx`` records of a patched layer, checked: a softmax that is a proxy's method cannot be answered."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch import nn

from ..attention.proxies import ANSWER, is_proxy, refuse_outside
from ..errors import UnsupportedModelError

__all__ = ["recorded"]

UNSEEN = {"softmax", "softmin", "log_softmax", "exp", "exp_", "exp2"}
"""What computes weights, and is not answered on proxies: whether scores come in cannot be told."""


def recorded(module: nn.Module, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``run()``, the forward of ``module`` with ``args`` and ``kwargs``; where these are proxies, what it recorded.

    Raises:
        UnsupportedModelError: ``torch.fx`` traces outside ``attn_plugins.exportable``, or has recorded a softmax that
            was not answered.
    """
    proxy = next((value for value in (*args, *kwargs.values()) if is_proxy(value)), None)
    if proxy is None:
        return run()
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    refuse_outside(name)
    graph = proxy.tracer.graph
    before = len(graph.nodes)
    out = run()
    for node in itertools.islice(graph.nodes, before, None):
        if ANSWER not in node.meta and _computes(node, proxy.tracer.root) in UNSEEN:
            raise UnsupportedModelError(
                f"{name} computes its attention by {_computes(node, proxy.tracer.root)}, and torch.fx does not tell "
                "whether that runs over scores; use torch.export.export inside "
                "`with attn_plugins.exportable(model):`, which does"
            )
    return out


def _computes(node: Any, root: nn.Module) -> str:
    if node.op == "call_module":
        return type(root.get_submodule(node.target)).__name__.lower()
    return str(getattr(node.target, "__name__", node.target))
