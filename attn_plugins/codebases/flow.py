"""Which tensors are attention scores and weights: followed from the product of two activations to the next.

Every dimension of such a tensor that comes from one of the two operands alone has a label, ``"a"`` or ``"b"``:
in ``q @ k.mT`` they are the queries and the keys. A softmax is attention's where it runs over one of these, and the
weights are used as attention's where the next product sums over the same.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional.plain import sizes

__all__ = [
    "Mark",
    "Marks",
    "TracedMarks",
    "Use",
    "einsum_labels",
    "einsum_operands",
    "follow",
    "is_activation",
    "product_labels",
    "reduces",
    "summed_labels",
    "times_labels",
    "weights_summed",
]

Labels = tuple[str | None, ...] | None
"""One per dimension; None where an operation in between cannot be followed."""


class Use:
    """How the weights of one softmax were used: in a product that sums along their rows, or across them."""

    def __init__(self) -> None:
        self.along = False
        self.across = False


class Mark:
    """What a tensor is.

    ``scores``; ``weights`` that were answered (``"s"`` labels their rows); ``exp`` of scores; ``left``, weights of a
    softmax that was none over scores; ``times``, a product of two activations element by element.
    """

    def __init__(self, kind: str, labels: Labels, use: Use | None = None) -> None:
        self.kind = kind
        self.labels = labels
        self.use = use

    def on(self, labels: Labels) -> Mark:
        """The same for a tensor that was made from this one."""
        return Mark(self.kind, labels, self.use)


class Marks:
    """The marks of the tensors that are alive; a tensor that goes takes its mark along."""

    def __init__(self) -> None:
        self._by_id: dict[int, tuple[weakref.ref[Tensor], Mark]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def get(self, tensor: Any) -> Mark | None:
        held = self._by_id.get(id(tensor))
        return held[1] if held is not None and held[0]() is tensor else None

    def put(self, tensor: Tensor, mark: Mark) -> None:
        self._by_id[id(tensor)] = (weakref.ref(tensor), mark)


class TracedMarks:
    """The same while torch.compile traces, which has neither ids nor weak references, and nothing to free."""

    def __init__(self) -> None:
        self._all: list[tuple[Tensor, Mark]] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def get(self, tensor: Any) -> Mark | None:
        found = None
        if isinstance(tensor, Tensor):
            for held, mark in self._all:
                if held is tensor:
                    found = mark
        return found

    def put(self, tensor: Tensor, mark: Mark) -> None:
        self._all.append((tensor, mark))


def is_activation(tensor: Tensor) -> bool:
    """Whether a tensor was computed from the input, as far as can be seen: it is no parameter and no view of one."""
    return not (isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter))


def product_labels(a: Tensor, b: Tensor, dims: int) -> Labels:
    """Labels of ``a @ b``, a tensor of ``dims`` dimensions."""
    if a.dim() < 2 or b.dim() < 2:
        return None
    rows, columns = "a" if is_activation(a) else None, "b" if is_activation(b) else None
    return (None,) * (dims - 2) + (rows, columns)


def einsum_operands(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str] | None:
    """Letters of each operand and of the result, ``...`` written out as digits; None where they cannot be told."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        return None
    spelled = []
    for term, operand in zip(terms, operands, strict=True):
        hidden = operand.dim() - len(term.replace("...", ""))
        spelled.append(term.replace("...", "9876543210"[10 - hidden :] if hidden else ""))
    dots = max((term for term in spelled), key=lambda term: sum(c.isdigit() for c in term))
    ellipsis = "".join(c for c in dots if c.isdigit())
    if not arrow:
        letters = sorted({c for term in spelled for c in term if not c.isdigit()})
        right = ellipsis + "".join(c for c in letters if left.count(c) == 1)
    return spelled, right.replace("...", ellipsis)


def einsum_labels(terms: list[str], result: str, operands: Sequence[Tensor]) -> Labels:
    """Labels of the result of an einsum of two operands."""
    if len(terms) != 2:
        return None
    first, second = terms
    a, b = (is_activation(operand) for operand in operands)
    return tuple(
        "a" if c in first and c not in second and a else "b" if c in second and c not in first and b else None
        for c in result
    )


def times_labels(a: Tensor, b: Tensor) -> Labels:
    """Labels of ``a * b`` where each of two activations of equal rank is broadcast to the other; None elsewhere."""
    if a.dim() != b.dim() or a.dim() < 3 or not (is_activation(a) and is_activation(b)):
        return None
    both = zip(sizes(a), sizes(b), strict=True)
    labels = tuple("a" if m > n == 1 else "b" if n > m == 1 else None for m, n in both)
    return labels if any(labels) and a.is_floating_point() and b.is_floating_point() else None


def summed_labels(labels: Any, source: Tensor, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Labels:
    """Labels of the sum of such a product over one dimension that both have; None where it is another sum."""
    dim = kwargs.get("dim", args[0] if args else None)
    dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
    if not isinstance(dim, int) or labels[dim] is not None:
        return None
    dim %= source.dim()
    return labels if out.dim() == source.dim() else (*labels[:dim], *labels[dim + 1 :])


def weights_summed(mark: Mark, dim: int) -> bool | None:
    """Whether a product that sums over ``dim`` of weights sums over their rows; None where it cannot be told."""
    if mark.labels is None or "s" not in mark.labels:
        return None
    return mark.labels[dim] == "s"


# --- what happens to the labels on the way


_PERMUTES = {
    torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes, torch.swapdims, Tensor.swapdims,
    torch.permute, Tensor.permute, torch.movedim, Tensor.movedim, torch.moveaxis, Tensor.moveaxis,
    torch.t, Tensor.t, Tensor.transpose_,
}  # fmt: skip
_TURNS: set[Any] = {Tensor.mT.__get__, Tensor.T.__get__, Tensor.mH.__get__, Tensor.H.__get__}  # type: ignore[attr-defined]
_RESHAPES = {
    torch.reshape, Tensor.reshape, Tensor.view, Tensor.view_as, Tensor.reshape_as, torch.flatten, Tensor.flatten,
    torch.unflatten, Tensor.unflatten, torch.squeeze, Tensor.squeeze, torch.unsqueeze, Tensor.unsqueeze,
}  # fmt: skip
_REDUCES = {
    torch.sum, Tensor.sum, torch.mean, Tensor.mean, torch.amax, Tensor.amax, torch.amin, Tensor.amin, torch.max,
    Tensor.max, torch.min, Tensor.min, torch.logsumexp, Tensor.logsumexp, torch.norm, Tensor.norm, torch.std,
    Tensor.std, torch.var, Tensor.var, torch.argmax, Tensor.argmax, torch.argmin, Tensor.argmin, torch.topk,
    Tensor.topk, torch.sort, Tensor.sort, torch.argsort, Tensor.argsort, torch.diagonal, Tensor.diagonal,
    torch.empty_like, torch.zeros_like, torch.ones_like, torch.full_like, torch.rand_like, torch.randn_like,
    Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full, Tensor.new_tensor, torch.linalg.norm,
}  # fmt: skip
"""What comes out of these is neither scores nor weights."""


def follow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor, mark: Mark, out: Tensor) -> Labels:
    """Labels of ``out``, which ``func`` made from ``source`` that has ``mark``."""
    labels = mark.labels
    if labels is None:
        return None
    if func in _PERMUTES:
        return _permuted(func, args, kwargs, labels, out)
    if func in _TURNS:
        return (*labels[:-2], labels[-1], labels[-2]) if len(labels) > 1 else labels
    if func is F.linear:
        return (*labels[:-1], None)
    if func not in _RESHAPES and out.dim() == source.dim():
        return labels
    if math.prod(sizes(source)) != math.prod(sizes(out)):  # indexed, or broadcast to more dimensions
        dims = min(source.dim(), out.dim())
        if dims == 0 or sizes(source)[-dims:] != sizes(out)[-dims:]:
            return None
        return (None,) * (out.dim() - dims) + labels[-dims:]
    return _regrouped(labels, sizes(source), sizes(out))


def reduces(func: Any) -> bool:
    """Whether what ``func`` makes of scores are no scores any more."""
    return func in _REDUCES


def _permuted(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], labels: Any, out: Tensor) -> Labels:
    order = _order(func, args[1:], kwargs, len(labels))
    return None if order is None or len(order) != out.dim() else tuple(labels[index] for index in order)


def _order(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dims: int) -> list[int] | None:
    name = func.__name__
    order = list(range(dims))
    if name in ("t",):
        return order[::-1]
    if name == "permute":
        given = kwargs.get("dims", args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args)
        return [int(index) % dims for index in given]
    if name in ("movedim", "moveaxis"):
        source = kwargs.get("source", args[0] if args else None)
        destination = kwargs.get("destination", args[1] if len(args) > 1 else None)
        if not isinstance(source, int) or not isinstance(destination, int):
            return None
        moved = order.pop(source % dims)
        order.insert(destination % dims, moved)
        return order
    names = ("dim0", "dim1") if "transpose" in name or "dim0" in kwargs else ("axis0", "axis1")
    given = [*args, *(kwargs[key] for key in names if key in kwargs)]
    if len(given) != 2:
        return None
    first, second = (int(index) % dims for index in given)
    order[first], order[second] = order[second], order[first]
    return order


def _regrouped(labels: Any, old: Sequence[int], new: Sequence[int]) -> Labels:
    """Labels after dimensions were split, merged, added or broadcast; by the place of each in memory order."""
    spans = [(*span, label) for span, label in zip(_spans(old), labels, strict=True)]
    found: list[str | None] = []
    for start, stop in _spans(new):
        over = {label for low, high, label in spans if max(low, start) < min(high, stop)}
        found.append(next(iter(over)) if len(over) == 1 else None)
    return tuple(found)


def _spans(shape: Sequence[int]) -> list[tuple[int, int]]:
    spans, inner = [], 1
    for size in reversed(list(shape)):
        spans.append((inner, inner * size))
        inner *= size
    return spans[::-1]
