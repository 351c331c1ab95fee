"""Answer the attention calls that a module's own code makes by :func:`attn_plugins.attention`, and count them."""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..attention import attention
from ..attention.counting import answers, note_answer, observing, within
from ..errors import UnsupportedModelError
from ..functional.plain import sizes
from ..swap import PREFIX
from . import flow
from .flow import Mark, Marks, TracedMarks, Use
from .fused import ANSWERS
from .symbolic import recorded

__all__ = ["ANSWERED", "NORMALIZER", "Answering", "answered", "current", "proved", "proved_on"]

NORMALIZER = PREFIX + "normalizer"
ANSWERED = PREFIX + "answered"
"""Attribute of a patched layer: how many attention calls it has answered so far."""

_LOCAL = threading.local()
_TRACED: list[Answering] = []
"""torch.compile, which traces one frame at a time, cannot trace a thread's own variables."""


def current() -> Answering | None:
    """The patched layer whose attention runs in this thread now, or is traced by torch.compile."""
    if torch.compiler.is_compiling():
        return _TRACED[-1] if _TRACED else None
    return getattr(_LOCAL, "running", None)


def _undispatched(function: Any) -> Any:
    """A torch function without its first step, which hands the whole call to the mode and then runs without it."""
    scope = {**function.__globals__, "has_torch_function": lambda tensors: False}
    del scope["__name__"]  # torch.compile would look names up in the module of that name instead of here
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_multi_head_attention_forward = _undispatched(F.multi_head_attention_forward)


class Answering(TorchFunctionMode):
    """Inside this context, the attention that the code of ``module`` computes uses its normalizer.

    Calls are caught however the code names them (``F.``, an import, an attribute), and softmax where it runs over
    the scores that a product of two activations has made (:mod:`.flow`). Anything else runs as it is. It is local to
    the thread, and is traced by torch.compile(fullgraph=True).

    Args:
        module: the patched layer.
        heads: scores come as ``[B * heads, N, S]``; None where they have a dimension for heads.
        traced: whether torch.compile traces this.
    """

    def __init__(self, module: Any, heads: int | None = None, traced: bool = False) -> None:
        super().__init__()
        self.module = module
        self.normalizer: Callable[..., Tensor] = getattr(module, NORMALIZER)
        self.heads = heads
        self.traced = traced
        self.marks: Any = TracedMarks() if traced else Marks()
        self.covered = False  # a layer inside this one runs, which answers for itself
        self.rerun = False  # a function that is checkpointed runs, which will run again under this answer
        self.grad = traced or torch.is_grad_enabled()
        self.count = 0
        self.sizes: list[tuple[int, ...]] = []
        self.uses: list[Use] = []
        self.written_out = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.covered:
            return func(*args, **kwargs)
        if func in _HANDLERS:
            return _HANDLERS[func](self, func, args, kwargs)
        out = func(*args, **kwargs)
        if self.marks:
            self._follow(func, args, kwargs, out)
        return out

    def function(self, name: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call of a Python function that was made to ask (:mod:`.fused`)."""
        if self.covered:
            return original(*args, **kwargs)
        if name == "checkpoint":
            run, *rest = args
            return original(_Again(self.module, run), *rest, **kwargs)
        self._may_answer()
        return ANSWERS[name](self.normalizer, *args, **kwargs)

    # --- answers

    def _may_answer(self) -> None:
        self.count += 1
        if self.traced or not self.grad or self.rerun or torch.is_grad_enabled():
            return
        where = _autograd_function()
        if where is not None:
            raise UnsupportedModelError(
                f"{_named(self.module)} computes its attention inside {where}, whose own backward cannot know how it "
                "is answered; use torch.utils.checkpoint.checkpoint, or code that autograd differentiates"
            )

    def _sdpa(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._may_answer()
        return attention(*args, **kwargs, normalizer=self.normalizer)

    def _multi_head(self, func: Any, args: Any, kwargs: Any) -> Any:
        heads = kwargs["num_heads"] if "num_heads" in kwargs else args[4]
        inner = Answering(self.module, heads, self.traced)
        inner.rerun, inner.grad = self.rerun, self.grad
        with inner:
            out = _multi_head_attention_forward(*args, **kwargs)
        self.count += inner.count
        return out

    def _softmax(self, func: Any, args: Any, kwargs: Any) -> Any:
        source = args[0] if args else kwargs["input"]
        dim = kwargs["dim"] if "dim" in kwargs else args[1] if len(args) > 1 else None
        if not isinstance(source, Tensor):  # a proxy of torch.fx: refused when all is recorded
            return func(*args, **kwargs)
        if dim is None or not isinstance(dim, int) or not self._over_keys(source, dim % source.dim()):
            return func(*args, **kwargs)
        # F.softmax and torch.softmax agree on the first two positions only.
        dtype = next((value for value in args[2:] if isinstance(value, torch.dtype)), kwargs.get("dtype"))
        scores = source if dtype is None else source.to(dtype)
        self._may_answer()
        dim = dim % source.dim()
        out = self._weights(scores, dim)
        if kwargs.get("out") is not None:
            out = kwargs["out"].copy_(out)
        if not self.traced:
            note_answer()
            watched = observing()
            if watched is not None:
                watched(self.module, backend="materialised", weights=out.movedim(dim, -1))
        mark = self.marks.get(source)
        labels = None if mark is None or mark.labels is None else list(mark.labels)
        if labels is not None:
            labels = [None if label == "s" else label for label in labels]
            labels[dim] = "s"
        use = Use()
        self.uses.append(use)
        self.marks.put(out, Mark("weights", None if labels is None else tuple(labels), use))
        return out

    def _over_keys(self, source: Tensor, dim: int) -> bool:
        mark = self.marks.get(source)
        last = dim == source.dim() - 1
        if mark is None:
            # Weights of another origin, as ConViT's of positions: rows of the same keys for the same queries.
            return last and source.dim() > 2 and tuple(sizes(source)[-2:]) in self.sizes
        if mark.kind != "scores":
            return False
        return last if mark.labels is None else mark.labels[dim] in ("a", "b")

    def _softmin(self, func: Any, args: Any, kwargs: Any) -> Any:
        source = args[0] if args else kwargs["input"]
        turned = -source
        mark = self.marks.get(source)
        if mark is not None:
            self.marks.put(turned, mark)
        rest = {key: value for key, value in kwargs.items() if key not in ("input", "_stacklevel")}
        return self._softmax(F.softmax, (turned, *args[1:2]), rest)

    def _weights(self, scores: Tensor, dim: int) -> Tensor:
        rows = scores if dim == scores.dim() - 1 else scores.movedim(dim, -1)
        if self.heads is not None:
            weights = self.normalizer(rows.unflatten(0, (-1, self.heads)), dim=-1).flatten(0, 1)
        else:
            weights = self.normalizer(rows, dim=-1)
        return weights if dim == scores.dim() - 1 else weights.movedim(-1, dim)

    def _refused(self, func: Any, args: Any, kwargs: Any) -> Any:
        raise UnsupportedModelError(
            f"{_named(self.module)} calls {getattr(func, '__name__', func)}, which computes softmax in a kernel of "
            "its own that cannot be answered; unpatch this layer, or leave it out of layers="
        )

    # --- products and what lies between them

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
        for value in values:
            if isinstance(value, Tensor):
                mark = self.marks.get(value)
                if mark is not None:
                    return value, mark
            elif isinstance(value, (list, tuple)):
                found = self._marked(value)
                if found[1] is not None:
                    return found
        return None, None

    def check(self) -> None:
        """Raise if what ran was not attention over keys.

        Raises:
            UnsupportedModelError: attention's weights were computed in a way that is not answered.
        """
        how = ""
        if self.written_out:
            how = "a softmax that is written with exp, log_softmax or gumbel_softmax"
        elif any(use.across and not use.along for use in self.uses):
            how = "a softmax over another dimension than the product with the values sums over"
        if how:
            raise UnsupportedModelError(
                f"{_named(self.module)} computes its attention by {how}: {self.normalizer} cannot replace that. "
                "Unpatch this layer, leave it out of layers=, or register an adapter for it"
            )


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: Answering._sdpa,
    F.multi_head_attention_forward: Answering._multi_head,
    **dict.fromkeys((F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax), Answering._softmax),
    **dict.fromkeys((torch._softmax, torch.ops.aten.softmax, torch.ops.aten.softmax.int), Answering._softmax),
    **dict.fromkeys((torch.ops.aten._softmax, torch.ops.aten._softmax.default), Answering._softmax),
    F.softmin: Answering._softmin,
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__), Answering._times),
    **dict.fromkeys((torch.sum, Tensor.sum), Answering._sum),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__), Answering._product),
    **dict.fromkeys((torch.bmm, Tensor.bmm, torch.mm, Tensor.mm, torch.linalg.matmul), Answering._product),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm, torch.addmm, Tensor.addmm), Answering._product),
    **dict.fromkeys((torch.inner, Tensor.inner, torch.cdist), Answering._product),
    **dict.fromkeys((torch.tensordot, F.cosine_similarity), Answering._similarity),
    torch.einsum: Answering._einsum,
    **dict.fromkeys((torch.exp, Tensor.exp, Tensor.exp_, torch.exp2, Tensor.exp2), Answering._exp),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, Tensor.log_softmax, F.gumbel_softmax), Answering._exp),
    torch._native_multi_head_attention: Answering._refused,
    torch._transformer_encoder_layer_fwd: Answering._refused,
}
for _name in ("scaled_dot_product_attention",):
    _HANDLERS[getattr(torch.ops.aten, _name)] = Answering._sdpa
    _HANDLERS[getattr(torch.ops.aten, _name).default] = Answering._sdpa


class _Again:
    """A function that is checkpointed inside an attention layer: when it runs again, it is answered again."""

    def __init__(self, module: Any, function: Callable[..., Any]) -> None:
        self.module = module
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outer = current()
        if outer is not None and outer.module is self.module:
            outer.rerun = True
            try:
                return self.function(*args, **kwargs)
            finally:
                outer.rerun = False
        with _running(self.module) as again:
            again.rerun = True
            return self.function(*args, **kwargs)


class _running:
    """The context in which a layer's attention is answered, layers around it left aside."""

    def __init__(self, module: Any) -> None:
        self.mode = Answering(module)

    def __enter__(self) -> Answering:
        self.outer = current()
        if self.outer is not None:
            self.outer.covered = True
        _LOCAL.running = self.mode
        self.mode.__enter__()
        return self.mode

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)
        _LOCAL.running = self.outer
        if self.outer is not None:
            self.outer.covered = False


def answered(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` of an attention module, run inside :class:`Answering` with that module's normalizer."""

    def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
        mode = Answering(self, traced=True)
        _TRACED.append(mode)
        try:
            with mode:
                out = method(self, *args, **kwargs)
        finally:
            _TRACED.pop()
        mode.check()
        if mode.count == 0:
            raise UnsupportedModelError(_nothing(self))
        return out

    @functools.wraps(method)  # inspect.signature shows upstream's
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            # Under activation checkpointing torch.compile takes entering a mode for a side effect; it is left again.
            from torch._dynamo.utils import _disable_side_effect_safety_checks_for_current_subtracer as trusted

            return trusted(traced, self, *args, **kwargs)
        outer = current()
        if outer is not None and outer.module is self:
            return method(self, *args, **kwargs)
        with _running(self) as mode:
            out = recorded(self, functools.partial(method, self, *args, **kwargs), args, kwargs)
        mode.check()
        return out

    return run


def proved(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` of a patched layer: every eager call answers attention, its own or of a layer inside, or raises."""

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        before, outer = answers(), within(self)
        try:
            out = forward(self, *args, **kwargs)
        finally:
            within(outer)
        given = answers() - before
        vars(self)[ANSWERED] = vars(self).get(ANSWERED, 0) + given
        if not given:
            raise UnsupportedModelError(_nothing(self))
        return out

    return run


def proved_on(module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a forward that is set on the instance ``module``."""

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        before = answers()
        out = forward(*args, **kwargs)
        if answers() == before and not torch.compiler.is_compiling():
            raise UnsupportedModelError(_nothing(module))
        return out

    run._attn_plugins_proved = True  # type: ignore[attr-defined]
    return run


def _nothing(module: nn.Module) -> str:
    return (
        f"{_named(module)} is patched with {getattr(module, NORMALIZER)}, and this forward computed no attention that "
        "could be answered: its code was changed since, another library replaced a method, a softmax runs elsewhere, "
        "or a fused path or a branch without attention was taken. Unpatch this layer, or register an adapter for it "
        "(attn_plugins.register_adapter)"
    )


def _named(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _autograd_function() -> str | None:
    """The ``torch.autograd.Function`` whose forward the caller runs in, if it runs in one."""
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if frame.f_globals is globals() and code.co_name == "run":
            return None
        if code.co_name == "forward":
            first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            owner = frame.f_globals.get(getattr(code, "co_qualname", "").partition(".")[0])
            if isinstance(first, torch.autograd.function.FunctionCtx):
                return f"{type(first).__name__.removesuffix('Backward')}, a torch.autograd.Function"
            if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
                return f"{owner.__name__}, a torch.autograd.Function"
        frame = frame.f_back  # type: ignore[assignment]
    return None
