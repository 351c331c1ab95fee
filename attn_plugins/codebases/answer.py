"""Answer the attention calls that a module's own code makes by ``attn_plugins.attention``, and count them."""

from __future__ import annotations

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
from ..attention.counting import note_answer, observing, tell_watchers
from ..errors import UnsupportedModelError
from ..functional.plain import sizes
from ..swap import PREFIX
from ..torch_names import ATEN_SOFTMAX, FUSED_LAYERS
from .flow import Mark, Marks, TracedMarks, Use
from .fused import ANSWERS
from .scores import Following

__all__ = ["NORMALIZER", "Answering", "current", "named", "running"]

NORMALIZER = PREFIX + "normalizer"
_LOCAL = threading.local()
TRACED: list[Answering] = []
"""torch.compile, which traces one frame at a time, cannot trace a thread's own variables."""


def current() -> Answering | None:
    """The patched layer whose attention runs in this thread now, or is traced by torch.compile."""
    if torch.compiler.is_compiling():
        return TRACED[-1] if TRACED else None
    return getattr(_LOCAL, "running", None)


def _undispatched(function: Any) -> Any:
    """A torch function without its first step, which hands the whole call to the mode and then runs without it."""
    scope = {**function.__globals__, "has_torch_function": lambda tensors: False}
    del scope["__name__"]  # torch.compile would look names up in the module of that name instead of here
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_multi_head_attention_forward = _undispatched(F.multi_head_attention_forward)


class Answering(Following, TorchFunctionMode):
    """Inside this context, the attention that the code of ``module`` computes uses its normalizer.

    Calls are caught however the code names them (``F.``, an import, an attribute), and softmax where it runs over
    the scores that a product of two activations has made (``flow``). Anything else runs as it is. It is local to
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
        self.follow(TracedMarks() if traced else Marks())
        self.covered = False  # a layer inside this one runs, which answers for itself
        self.rerun = False  # a function that is checkpointed runs, which will run again under this answer
        self.grad = traced or torch.is_grad_enabled()
        self.count = 0

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
        """A call of a Python function that was made to ask (``fused``)."""
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
                f"{named(self.module)} computes its attention inside {where}, whose own backward cannot know how it "
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
        if dim is None or not isinstance(dim, int):
            return func(*args, **kwargs)
        if not self._over_keys(source, dim % source.dim()):
            return self._leave(source, dim % source.dim(), func(*args, **kwargs))
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
            tell_watchers(self.module, weights=out.movedim(dim, -1), heads=self.heads)
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
            # Weights of another origin over the same keys: for the same queries, as ConViT's of positions, or for all.
            keys = {(number, total) for n, total in self.sizes for number in (n, 1)}
            return last and source.dim() > 2 and tuple(sizes(source)[-2:]) in keys
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
            f"{named(self.module)} calls {getattr(func, '__name__', func)}, which computes softmax in a kernel of "
            "its own that cannot be answered; unpatch this layer, or leave it out of layers="
        )

    def check(self) -> None:
        """Raise if what ran was not attention over keys.

        Raises:
            UnsupportedModelError: attention's weights were computed in a way that is not answered.
        """
        how = ""
        if self.written_out:
            how = "a softmax that is written with exp, log_softmax or gumbel_softmax"
        elif any(total in self.left for _, total in self.sizes):
            how = "another softmax too, over as many entries as there are keys and of scores that no product made"
        elif any(use.across for use in self.uses):
            how = "a softmax over another dimension than the product with the values sums over"
        if how:
            raise UnsupportedModelError(
                f"{named(self.module)} computes its attention by {how}: {self.normalizer} cannot replace that. "
                "Unpatch this layer, leave it out of layers=, or register an adapter for it"
            )


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: Answering._sdpa,
    F.multi_head_attention_forward: Answering._multi_head,
    **dict.fromkeys((F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax), Answering._softmax),
    **dict.fromkeys(ATEN_SOFTMAX, Answering._softmax),
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
    **dict.fromkeys(FUSED_LAYERS, Answering._refused),
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
        with running(self.module) as again:
            again.rerun = True
            return self.function(*args, **kwargs)


class running:
    """The context in which a layer's attention is answered, layers around it left aside."""

    def __init__(self, module: Any) -> None:
        self.mode = Answering(module)

    def __enter__(self) -> Answering:
        self.outer = current()
        if self.outer is not None:
            self.outer.covered = True
        _LOCAL.running = self.mode
        self.mode.__enter__()  # type: ignore[no-untyped-call]
        return self.mode

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)  # type: ignore[no-untyped-call]
        _LOCAL.running = self.outer
        if self.outer is not None:
            self.outer.covered = False


def named(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _autograd_function() -> str | None:
    """The ``torch.autograd.Function`` whose forward the caller runs in, if it runs in one."""
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if frame.f_globals.get("__name__") == f"{__package__}.proof":  # where this layer began
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
