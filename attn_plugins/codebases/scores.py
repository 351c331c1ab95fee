"""Follow scores and weights through the torch functions that a layer's code calls (``flow`` has the rules)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..functional.plain import sizes
from . import flow
from .flow import Mark, Use

__all__ = ["Following"]


class Following:
    """What a torch function mode knows of the tensors between the product of q and k and that with v.

    Attributes:
        marks: which tensors are scores and weights.
        sizes: last two sizes of the scores that were seen.
        uses: of the weights of every softmax that was answered.
        written_out: whether weights were computed by exp, and used.
        left: numbers of entries in rows of a softmax that was left alone and multiplied with activations.
    """

    def follow(self, marks: Any) -> None:
        """Begin, with nothing marked."""
        self.marks = marks
        self.sizes: list[tuple[int, ...]] = []
        self.uses: list[Use] = []
        self.written_out = False
        self.left: set[int] = set()

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if len(operands) == 3:  # baddbmm and addmm: the first is what is added
            operands = operands[1:]
        if len(operands) == 2 and isinstance(out, Tensor):
            a, b = operands
            if func is Tensor.__rmatmul__:
                a, b = b, a
            self._multiply(a, b, None, out)
        return out

    def _similarity(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Scores by functions whose dimensions are not followed."""
        out = func(*args, **kwargs)
        operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if isinstance(out, Tensor) and not any(self.marks.get(operand) for operand in operands):
            self.marks.put(out, Mark("scores", None))
        return out

    def _einsum(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if args and isinstance(args[0], str):
            operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
            if len(operands) == 2:
                self._multiply(operands[0], operands[1], flow.einsum_operands(args[0], operands), out)
        return out

    def _times(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        a, b = args[0], args[1] if len(args) > 1 else kwargs.get("other")
        if not isinstance(out, Tensor):
            return out
        if self.marks:
            self._follow(func, args, kwargs, out)
        if isinstance(a, Tensor) and isinstance(b, Tensor) and self.marks.get(out) is None:
            labels = flow.times_labels(a, b)
            if labels is not None:
                self.marks.put(out, Mark("times", labels))
        return out

    def _sum(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        source = args[0] if args else kwargs.get("input")
        mark = self.marks.get(source)
        if mark is not None and mark.kind == "times" and isinstance(out, Tensor):
            labels = flow.summed_labels(mark.labels, source, out, args[1:], kwargs)
            if labels is not None:  # q and k, multiplied element by element: scores
                self.marks.put(out, Mark("scores", labels))
        return out

    def _multiply(self, a: Tensor, b: Tensor, letters: Any, out: Tensor) -> None:
        marks = [(self.marks.get(t), t, other, n) for n, (t, other) in enumerate(((a, b), (b, a)))]
        for mark, tensor, other, place in marks:
            if mark is None or mark.kind == "times":
                continue
            if mark.kind == "scores" and flow.is_activation(other):
                continue
            if mark.kind == "left":  # whatever it multiplies may be scores all the same
                self._use_left(mark, letters, place, tensor, other)
                continue
            if letters is None:
                summed = mark.labels is not None and tensor.dim() > 1 and (tensor.dim() - 1 - place)
                self._use(mark, None if summed is False else summed, other, out, place)
            else:
                self._use_letters(mark, letters, place, other, out)
            return
        if flow.is_activation(a) or flow.is_activation(b):
            labels = (
                flow.product_labels(a, b, out.dim())
                if letters is None
                else flow.einsum_labels(letters[0], letters[1], (a, b))
            )
            if labels is None or "a" in labels or "b" in labels:
                self.marks.put(out, Mark("scores", labels))
                if out.dim() > 2:
                    self.sizes.append(tuple(sizes(out)[-2:]))

    def _use(self, mark: Mark, dim: int | None, other: Tensor, out: Tensor, place: int) -> None:
        """``a @ b`` of which one, at ``place``, has a mark; ``dim`` of it is summed over."""
        if not flow.is_activation(other):  # a mixing of heads, or the like: what comes out is what went in
            labels = mark.labels
            if labels is not None and len(labels) == out.dim():
                kept = [*labels[:-1], None] if place == 0 else [*labels[:-2], None, labels[-1]]
                self.marks.put(out, mark.on(tuple(kept)))
            else:
                self.marks.put(out, mark.on(None))
            return
        self._summed(mark, None if dim is None else flow.weights_summed(mark, dim))

    def _leave(self, source: Tensor, dim: int, out: Any) -> Any:
        """Take down that a softmax over ``dim`` of ``source`` was left alone."""
        if isinstance(out, Tensor) and self.marks.get(source) is None:
            self.marks.put(out, Mark("left", tuple("s" if index == dim else None for index in range(out.dim()))))
        return out

    def _use_left(self, mark: Mark, letters: Any, place: int, tensor: Tensor, other: Tensor) -> None:
        labels = mark.labels
        if labels is None or "s" not in labels or not flow.is_activation(other):
            return
        rows = labels.index("s")
        if letters is None:
            summed = tensor.dim() > 1 and rows == tensor.dim() - 1 - place
        else:
            summed = letters[0][place][rows] not in letters[1]
        if summed:
            self.left.add(sizes(tensor)[rows])

    def _use_letters(self, mark: Mark, letters: Any, place: int, other: Tensor, out: Tensor) -> None:
        terms, result = letters
        own = terms[place]
        if mark.labels is None or len(mark.labels) != len(own):
            if flow.is_activation(other):
                self._summed(mark, None)
            else:
                self.marks.put(out, mark.on(None))
            return
        by_letter = dict(zip(own, mark.labels, strict=True))
        rows = next((letter for letter, label in by_letter.items() if label == "s"), None)
        if not flow.is_activation(other) or (rows is not None and rows in result):
            if mark.kind == "exp" and flow.is_activation(other):
                self._summed(mark, None)
                return
            if flow.is_activation(other) and any(c not in result for c in own if c != rows):
                self._summed(mark, False)
            self.marks.put(out, mark.on(tuple(by_letter.get(letter) for letter in result)))
            return
        self._summed(mark, None if rows is None else True)

    def _summed(self, mark: Mark, over_rows: bool | None) -> None:
        if mark.kind == "exp":
            self.written_out = True
        elif mark.use is not None and over_rows is False:
            mark.use.across = True
        elif mark.use is not None:
            mark.use.along = True

    def _exp(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        source = args[0] if args else kwargs.get("input", kwargs.get("logits"))
        mark = self.marks.get(source)
        if mark is not None and mark.kind == "scores" and isinstance(out, Tensor):
            self.marks.put(out, Mark("exp", mark.labels))
        elif mark is not None:
            self._follow(func, args, kwargs, out)
        return out

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        outs = out if isinstance(out, (list, tuple)) else (out,)
        if flow.reduces(func) or not any(isinstance(o, Tensor) and o.is_floating_point() for o in outs):
            return
        source, mark = self._marked(args)
        if mark is None and kwargs:
            source, mark = self._marked(tuple(kwargs.values()))
        if mark is None or source is None:
            return
        for made in outs:
            if isinstance(made, Tensor) and made.is_floating_point() and made is not source:
                self.marks.put(made, mark.on(flow.follow(func, args, kwargs, source, mark, made)))

    def _marked(self, values: Any) -> tuple[Tensor | None, Mark | None]:
        left: tuple[Tensor | None, Mark | None] = (None, None)
        for value in values:
            found = left
            if isinstance(value, Tensor):
                found = (value, self.marks.get(value))
            elif isinstance(value, (list, tuple)):
                found = self._marked(value)
            if found[1] is not None and found[1].kind != "left":
                return found
            left = found if found[1] is not None else left
        return left
