"""What a module's Python code does, read from its bytecode and not run: how attention is found.

Attention classes of different codebases share no base class and few names, but what they compute is in their code:
a call of ``scaled_dot_product_attention``, or a product of two activations, a softmax, and another product. Names
are resolved to the objects that they stand for (globals, closures, attributes of the instance), helpers and
other methods are followed, so a function that only bears a known name is read like any other.

What is found here says where to look, and is proved when the model runs (``answer``).
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import operator
import sys
import types
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..torch_names import ATEN_SOFTMAX, is_operator_namespace
from .bytecode import UNKNOWN, call, imported, is_product, last_int, loads, module, multiplies, summed, written_numbers
from .events import Event, attends, product_follows, softmax_between, why_missed
from .fused import fused_name

__all__ = ["Analysis", "analyse", "is_torchs", "scripted_attention", "unwrapped"]

CALLS: dict[Any, str] = {F.scaled_dot_product_attention: "scaled_dot_product_attention"}
CALLS[F.multi_head_attention_forward] = "multi_head_attention_forward"
CALLS[torch.ops.aten.scaled_dot_product_attention] = "scaled_dot_product_attention"
CALLS[torch.ops.aten.scaled_dot_product_attention.default] = "scaled_dot_product_attention"
_SOFTMAX: tuple[Any, ...] = (F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax, nn.Softmax, F.softmin)
_SOFTMAX += ATEN_SOFTMAX
_EXP = (torch.exp, torch.exp2, Tensor.exp, Tensor.exp_, F.log_softmax, torch.log_softmax, F.gumbel_softmax)
_PRODUCT: tuple[Any, ...] = (torch.matmul, torch.bmm, torch.baddbmm, torch.mm, torch.addmm, torch.linalg.matmul)
_PRODUCT += (torch.einsum, torch.tensordot, torch.inner, torch.cdist, F.cosine_similarity, operator.matmul)
_TENSOR_METHODS = {"softmax": "softmax", "exp": "exp", "exp_": "exp", "log_softmax": "exp"}
_TENSOR_METHODS |= dict.fromkeys(("matmul", "bmm", "baddbmm", "mm", "addmm", "inner", "__matmul__"), "product")
_OBJECTS: list[tuple[Any, str]] = [
    *((known, "softmax") for known in _SOFTMAX),
    *((known, "exp") for known in _EXP),
    *((known, "product") for known in _PRODUCT),
    *((known, "call") for known in CALLS),
]
_NAMED = {"scaled_dot_product_attention": F.scaled_dot_product_attention, "softmax": F.softmax}
"""What ``getattr(F, "...")`` gives."""
_FOREIGN = {
    *("torch", "torchvision", "numpy", "scipy", "einops", "PIL", "cv2", "lightning", "pytorch_lightning", "mmengine"),
    *("huggingface_hub", "peft", "accelerate", "omegaconf", "packaging", "attn_plugins", "opt_einsum"),
    *sys.stdlib_module_names,
}
"""Frameworks: what their own code computes is no model's attention. (torchvision's models are read nevertheless.)"""
_MODELS = ("torchvision.models.", "transformers.models.", "transformers_modules.")
_SKIPPED = {"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "RESUME"}
_EINSUMS = {"einsum", "contract"}
"""What einops and opt_einsum call theirs; both end in ``torch.einsum`` or ``tensordot``, where they are answered."""
_MAX_DEPTH = 8

_SELF = object()


@dataclass(frozen=True)
class Analysis:
    """What the methods of a module compute.

    Attributes:
        methods: those in which attention is computed, the innermost; to each, whether a softmax between two
            products is part of it (else it is a call, as of SDPA).
        called: whether one of them calls an attention function.
        fused: fused attention functions that the code calls and nobody can answer for.
        missed: why code that looks like attention is not taken for it; empty where there is no such code.
    """

    methods: dict[str, bool]
    called: bool = False
    fused: tuple[str, ...] = ()
    missed: str = ""


def unwrapped(value: Any) -> types.FunctionType | None:
    """The Python function behind decorators; None for anything that has no Python code."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, types.FunctionType) else None


_SEEN: weakref.WeakKeyDictionary[type, dict[Any, Analysis]] = weakref.WeakKeyDictionary()
_MOST_KINDS = 64  # of instances of one class: each may hold a callable of its own


def analyse(module: nn.Module, cls: type) -> Analysis:
    """Read the methods of ``cls``, the class of ``module`` without patches; what the instance holds tells the rest."""
    known = _SEEN.setdefault(cls, {})
    key = _signature(module)
    if key not in known:
        if len(known) >= _MOST_KINDS:
            known.clear()
        known[key] = _Reader(module, cls).analysis()
    return known[key]


def _signature(module: nn.Module) -> tuple[Any, ...]:
    """What of an instance decides how its class's code is read, without a reference to it."""
    held = [
        (name, _identity(value)) for name, value in vars(module).items() if callable(value) and name[0:5] != "attn_"
    ]
    return (*held, *((name, *_kind(child)) for name, child in module._modules.items()))


def _kind(child: Any) -> tuple[Any, ...]:
    dim = getattr(child, "dim", None)
    parts = child if isinstance(child, nn.Sequential) else ()
    return (_identity(type(child)), dim if isinstance(dim, int) else None, *map(_kind, parts))


def _identity(value: Any) -> tuple[Any, ...]:
    if isinstance(value, functools.partial):
        return ("partial", *_identity(value.func), str(sorted(value.keywords)))
    code = getattr(value, "__code__", None)
    named = getattr(value, "__qualname__", type(value).__qualname__)
    return getattr(value, "__module__", None), named, id(code) if code is not None else None


class _Reader:
    """Reads one module's methods; ``super()`` and helpers are followed into their own code."""

    def __init__(self, module: nn.Module, cls: type) -> None:
        self.module = module
        self.cls = cls
        mro = cls.__mro__
        owners = mro[: mro.index(nn.Module)] if nn.Module in mro else mro[:-1]
        self.owners = [owner for owner in owners if not _foreign(owner)]
        self.places = {
            function: place
            for place, owner in enumerate(self.owners)
            for function in map(unwrapped, vars(owner).values())
            if function is not None
        }
        self.running: list[Any] = []
        self.read: dict[Any, list[Event]] = {}
        self.left_out: set[str] = set()

    def analysis(self) -> Analysis:
        events = {name: list(self._method(name)) for name in self._names()}
        attending = {name for name, seen in events.items() if attends(seen)}
        # Softmax in one method, the product with v in another: all that is asked is that some method has both.
        whole = [seen for seen in events.values() if product_follows(seen)]
        calls = {name for name, seen in events.items() if any(event.kind == "call" for event in seen)}
        if not whole:
            attending &= calls
        inner = {name for name in attending if attends(self._without(name, attending))}
        fused = {event.name for seen in events.values() for event in seen if event.kind == "fused"}
        heads = any(hasattr(self.module, name) for name in ("num_heads", "num_attention_heads", "n_heads", "heads"))
        every = [event for seen in events.values() for event in seen]
        layer = any(True for _ in self.module.parameters())
        missed = "" if inner else why_missed(every, whole, events, heads, layer)
        methods = {name: softmax_between(events[name]) for name in sorted(inner)}
        return Analysis(methods, bool(inner & calls), tuple(sorted(fused)), missed)

    def _names(self) -> list[str]:
        """Methods of instances, other than those that nn.Module has too, ``forward`` excepted."""
        names = dict.fromkeys(name for owner in self.owners for name in vars(owner))
        return [
            name
            for name in names
            if (name == "forward" or not hasattr(nn.Module, name))
            and not isinstance(self._static(name), (staticmethod, classmethod, property))
            and unwrapped(self._static(name)) is not None
        ]

    def _without(self, name: str, others: set[str]) -> list[Event]:
        """What a method does besides calling ``others``."""
        self.left_out = others - {name}
        try:
            return list(self._method(name))
        finally:
            self.left_out = set()

    def _static(self, name: str) -> Any:
        return next((vars(owner)[name] for owner in self.owners if name in vars(owner)), None)

    def _method(self, name: str) -> Iterator[Event]:
        for place, owner in enumerate(self.owners):
            if name in vars(owner):
                function = unwrapped(vars(owner)[name])
                if function is not None:
                    yield from self._read(function, place)
                return

    def _read(self, function: types.FunctionType, place: int | None) -> list[Event]:
        """Steps of a function in the order in which they run; ``place``: of a method's owner, None of a helper."""
        key = (function, place, frozenset(self.left_out))
        if key in self.read:
            return self.read[key]
        if key in self.running or len(self.running) > _MAX_DEPTH:
            return []
        self.running.append(key)
        try:
            first = function.__code__.co_varnames[:1] if place is not None else ()
            self.read[key] = self._code(function.__code__, function, first[0] if first else "", place)
            return self.read[key]
        finally:
            self.running.pop()

    def _code(self, code: types.CodeType, function: types.FunctionType, own: str, place: int | None) -> list[Event]:
        steps = [step for step in dis.get_instructions(code) if step.opname not in _SKIPPED]
        placed: list[tuple[int, int, Event]] = []
        local: dict[str, Any] = {}  # what imports inside the function bind
        numbers = written_numbers(steps)
        package, pending = "", UNKNOWN
        top: Any = None
        before: Any = None

        def add(value: Any, index: int) -> None:
            where = call(steps, index)
            end = index if where is None else where
            dim = last_int(steps[index + 1 : end], numbers)
            placed.extend((end, len(placed) + n, event) for n, event in enumerate(self._events(value, dim, place)))

        for index, step in enumerate(steps):
            name = step.opname
            if isinstance(step.argval, types.CodeType):
                inner = self._code(step.argval, function, own, place)
                placed.extend((index, len(placed) + n, event) for n, event in enumerate(inner))
            if is_product(step) or (multiplies(step) and summed(steps[index + 1 :])):
                placed.append((index, len(placed), Event("product")))
            if name == "IMPORT_NAME":
                package = str(step.argval)
                pending = module(package.partition(".")[0])
            elif name == "IMPORT_FROM":
                pending = imported(package, str(step.argval))
            elif name.startswith("STORE_") and pending is not UNKNOWN:
                local[str(step.argval)], pending = pending, UNKNOWN
            elif name == "LOAD_CONST" and step.argval in _NAMED and "getattr" in code.co_names:
                add(_NAMED[step.argval], index)
            loaded = loads(step)
            if loaded is not None:
                before, top = top, self._load(step, loaded, function, own, local)
            elif name.startswith("CALL") and step.arg == 1 and before is type and top is _SELF:
                top = self.cls
            elif name in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD"):
                top = self._attribute(top if "SUPER" not in name else UNKNOWN, str(step.argval), place, code)
            else:
                top = None
                continue
            follows = steps[index + 1].opname if index + 1 < len(steps) else ""
            if follows not in ("LOAD_ATTR", "LOAD_METHOD"):
                add(top, index)
        return [event for _, _, event in sorted(placed, key=lambda item: item[:2])]

    def _load(self, step: dis.Instruction, name: str, function: Any, own: str, local: dict[str, Any]) -> Any:
        if own and name == own and step.opname != "LOAD_GLOBAL":
            return _SELF
        if name in local:
            return local[name]
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            return function.__globals__.get(name, getattr(builtins, name, UNKNOWN))
        if step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
            cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
            try:
                return cells[name].cell_contents
            except (KeyError, ValueError):  # a variable of a function around, or one that is not set yet
                return UNKNOWN
        return UNKNOWN

    def _attribute(self, owner: Any, name: str, place: int | None, code: types.CodeType) -> Any:
        if owner is _SELF and name == "__class__":
            return self.cls
        if owner is _SELF:
            static = self._static(name)
            if static is not None:
                return _Method(name)
            places = (vars(self.module), self.module._modules, self.module._parameters)
            return next((held[name] for held in places if held.get(name) is not None), UNKNOWN)
        if is_operator_namespace(owner):
            return getattr(owner, name, UNKNOWN)  # operators are looked up when they are asked for
        if isinstance(owner, types.ModuleType):
            return vars(owner).get(name, UNKNOWN)
        if isinstance(owner, (type, nn.Module)):
            found = inspect.getattr_static(owner, name, UNKNOWN)
            if isinstance(owner, nn.Module) and found is UNKNOWN:
                found = owner._modules.get(name, UNKNOWN)
            if issubclass(owner if isinstance(owner, type) else type(owner), torch.autograd.Function):
                return getattr(owner, "forward", UNKNOWN) if name == "apply" else UNKNOWN
            return found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
        if isinstance(owner, Tensor) and _TENSOR_METHODS.get(name) == "exp":
            return UNKNOWN  # CLIP's learned temperature
        if owner is UNKNOWN or owner is None or isinstance(owner, Tensor):
            if place is not None and "super" in code.co_names:
                above = next((vars(o)[name] for o in self.owners[place + 1 :] if name in vars(o)), None)
                if above is not None:
                    return _Base(name, place)
            return _TensorMethod(name)
        return UNKNOWN

    def _events(self, value: Any, dim: int | None, place: int | None) -> list[Event]:
        if isinstance(value, functools.partial):
            given = value.keywords.get("dim")
            return self._events(value.func, given if isinstance(given, int) else dim, place)
        if isinstance(value, _TensorMethod):
            kind = _TENSOR_METHODS.get(value.name)
            return [] if kind is None else [Event(kind, value.name, dim)]
        if isinstance(value, _Method):
            return [] if value.name in self.left_out else list(self._method(value.name))
        if isinstance(value, _Base):
            for above in range(value.place + 1, len(self.owners)):
                function = unwrapped(vars(self.owners[above]).get(value.name))
                if function is not None:
                    return self._read(function, above)
            return []
        if isinstance(value, nn.Softmax):
            return [Event("softmax", "Softmax", value.dim)]
        if isinstance(value, nn.Sequential):  # a softmax and its dropout; whatever else it holds stands for itself
            parts = [event for part in value for event in self._events(part, None, None)]
            return parts if all(event.kind == "softmax" for event in parts) else []
        if isinstance(value, nn.Module):
            return self._child(value)
        for known, kind in _OBJECTS:
            if value is known:
                return [Event(kind, CALLS.get(value, getattr(value, "__name__", "")) if kind == "call" else "", dim)]
        if getattr(value, "__name__", "") in ("einsum", "contract") and _root(value) in ("einops", "opt_einsum"):
            return [Event("product")]
        if isinstance(value, torch.jit.ScriptFunction):
            return [Event("fused", f"the TorchScript function {value.name}")] if scripted_attention(value) else []
        found = fused_name(value)
        if found is not None:
            return [Event(*found)]
        function = unwrapped(value) if not isinstance(value, type) else None
        if function is None and not isinstance(value, (type, Tensor)):  # an object that is called, as a processor
            function = unwrapped(inspect.getattr_static(type(value), "__call__", None))
        if function is None:
            return []
        if _foreign(function):
            return [Event("product", function.__name__)] if function.__name__ in _EINSUMS else []
        return self._read(function, self.places.get(function))

    def _child(self, child: nn.Module) -> list[Event]:
        """A submodule without parameters (a softmax of one's own) is read as a helper."""
        from ..swap import bare

        cls = bare(child)
        if _foreign(cls) or any(True for _ in child.parameters()) or len(self.running) > _MAX_DEPTH:
            return []
        reader = _Reader(child, cls)
        reader.running = [*self.running, id(child)]
        return [] if id(child) in self.running else list(reader._method("forward"))


def scripted_attention(value: Any) -> bool:
    """Whether a TorchScript function or module computes a softmax, which nobody can answer there."""
    graph = str(getattr(value, "inlined_graph", ""))
    return "aten::softmax" in graph or "scaled_dot_product" in graph


@dataclass(frozen=True)
class _TensorMethod:
    name: str


@dataclass(frozen=True)
class _Method:
    name: str


@dataclass(frozen=True)
class _Base:
    name: str
    place: int


def is_torchs(cls: type) -> bool:
    """Whether a module's class is torch's own; a class that torch makes of another (``fully_shard``) is not."""
    owners = cls.__mro__[: cls.__mro__.index(nn.Module)] if nn.Module in cls.__mro__ else cls.__mro__
    return all(owner.__module__.partition(".")[0] == "torch" for owner in owners)


def _root(value: Any) -> str:
    return str(getattr(value, "__module__", "") or "").partition(".")[0]


def _foreign(value: Any) -> bool:
    if str(getattr(value, "__module__", "") or "").startswith(_MODELS):
        return False
    return _root(value) in _FOREIGN or _root(value) == "transformers"
