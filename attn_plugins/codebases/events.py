"""Steps of a computation, and which sequences of them are attention."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Event", "attends", "product_follows", "rows", "softmax_between", "why_missed"]


@dataclass(frozen=True)
class Event:
    """One step of a computation: ``product``, ``softmax``, ``exp``, ``call`` or ``fused``, with what names it."""

    kind: str
    name: str = ""
    dim: int | None = None


def rows(event: Event) -> bool:
    """Whether a softmax may run over the last dimension of scores."""
    return event.kind == "softmax" and event.dim not in (-2, -3, -4, 0, 1)


def attends(events: list[Event]) -> bool:
    """Whether attention's weights are computed: by a call, or by a product and then a softmax over rows."""
    if any(event.kind == "call" for event in events):
        return True
    products = [index for index, event in enumerate(events) if event.kind == "product"]
    return bool(products) and any(rows(event) for event in events[products[0] + 1 :])


def softmax_between(events: list[Event]) -> bool:
    return attends([event for event in events if event.kind != "call"])


def product_follows(events: list[Event]) -> bool:
    if any(event.kind == "call" for event in events):
        return True
    first = next((index for index, event in enumerate(events) if event.kind == "product"), len(events))
    softmax = next((n for n, event in enumerate(events) if n > first and rows(event)), len(events))
    return any(event.kind == "product" for event in events[softmax + 1 :])


def why_missed(
    events: list[Event], whole: list[list[Event]], by_method: dict[str, list[Event]], heads: bool, layer: bool
) -> str:
    """What code that looks like attention lacks.

    heads: whether the module counts heads; layer: whether it has parameters, which losses and matchers have not.
    """
    kinds = {event.kind for event in events}
    softmaxes = [event for event in events if event.kind == "softmax"]
    if "product" in kinds and "exp" in kinds and any(_product_after_exp(seen) for seen in by_method.values()):
        return "its softmax is written with exp"
    if softmaxes and not any(map(rows, softmaxes)):
        return f"its softmax runs over dimension {softmaxes[0].dim}, not over the last"
    if softmaxes and not any(attends(seen) for seen in by_method.values()):
        named = layer and (heads or "product" in kinds)
        return "a softmax, and no product of two activations before it" if named else ""
    if softmaxes and not whole:
        return "a softmax over a product, and no product with values after it"
    return ""


def _product_after_exp(events: list[Event]) -> bool:
    kinds = [event.kind for event in events]
    if "product" not in kinds or "exp" not in kinds[kinds.index("product") :]:
        return False
    at = kinds.index("exp", kinds.index("product"))
    return "product" in kinds[at + 1 :]
