"""Attention on the proxies of ``torch.fx``, which stand for tensors without telling shape, dtype or value."""

from __future__ import annotations

import itertools
import operator
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import UnsupportedModelError
from ..functional import plain
from ..torch_names import assert_in_graph
from . import reference, sdpa
from .call import AttentionCall

__all__ = ["ANSWER", "attention", "is_proxy", "refuse_outside"]

ANSWER = "attn_plugins_answer"
"""Of a node's ``meta``: that the node belongs to the answer to an attention call."""


def is_proxy(value: Any) -> bool:
    """Whether ``torch.fx`` is tracing, and this is one of its proxies."""
    return not isinstance(value, Tensor) and any(
        cls.__module__ == "torch.fx.proxy" and cls.__name__ == "Proxy" for cls in type(value).__mro__
    )


def refuse_outside(what: str) -> None:
    """Raise where nobody asked for plain operations.

    Raises:
        UnsupportedModelError: this does not run inside ``attn_plugins.exportable``.
    """
    if not plain.asked():
        raise UnsupportedModelError(
            f"{what} is traced by torch.fx, which cannot record its kernels; "
            "trace inside `with attn_plugins.exportable(model):`"
        )


def attention(call: AttentionCall, enable_gqa: bool, return_weights: bool) -> Tensor | tuple[Tensor, Tensor]:
    """``call`` on proxies, recorded as plain torch operations.

    Arguments of the traced function that were left out (``attn_mask=None``, ``is_causal=False``) stay at their
    default in the graph, which checks that; their proxies could be anything.

    Raises:
        UnsupportedModelError: a mask or ``is_causal`` that is computed while tracing, or a packed batch.
    """
    refuse_outside("attention")
    graph = call.query.tracer.graph  # type: ignore[attr-defined]
    before = len(graph.nodes)
    out = _attention(call, enable_gqa, return_weights)
    for node in itertools.islice(graph.nodes, before, None):
        node.meta[ANSWER] = True
    return out


def _attention(call: AttentionCall, enable_gqa: bool, return_weights: bool) -> Tensor | tuple[Tensor, Tensor]:
    query, key, value = call.query, call.key, call.value
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    mask = _settled(call.attn_mask, "attn_mask")
    causal = _settled(call.is_causal, "is_causal")
    if mask is not None and not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"attn_mask of type {type(mask).__name__} cannot be traced by torch.fx; use a tensor, or torch.export"
        )
    call = replace(call, key=key, value=value, attn_mask=mask, is_causal=causal)
    if return_weights:
        weights = reference.attention_weights(call)
        return reference.weighted_values(call, weights), weights
    run = reference.run if sdpa.unsupported(call) else sdpa.run
    return run(call)


def _settled(value: Any, name: str) -> Any:
    """The default of an argument of the traced function; other values as they are."""
    if not is_proxy(value):
        return value
    node = value.node
    if node.op != "placeholder" or node.args not in ((None,), (False,), (True,)):
        raise UnsupportedModelError(
            f"{name} depends on the input, and torch.fx does not tell what it is; trace with concrete_args="
            f"{{{name!r}: ...}}, or use torch.export inside `with attn_plugins.exportable(model):`"
        )
    (default,) = node.args
    same = value.tracer.create_proxy("call_function", operator.is_, (value, default), {})
    assert_in_graph(same, f"this graph was traced with {node.target}={default}; trace again with concrete_args")
    return default
