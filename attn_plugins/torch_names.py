"""What torch names differently from release to release, or privately: the one place where its version matters.

The package takes torch 2.4 and later. Where an older release lacks a function, its place is taken here, or what needs
it is refused by name. ``tests/test_torch_names.py`` says which release moved a name.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten

from .errors import UnsupportedModelError

__all__ = [
    "ATEN_SOFTMAX",
    "FUSED_LAYERS",
    "TESTED",
    "VERSION",
    "add_safe_globals",
    "assert_in_graph",
    "exporting",
    "exporting_to_onnx",
    "forward_mode",
    "is_operator_namespace",
    "leaves",
    "load_dynamo",
    "needs",
    "refuse_context_parallel",
    "refuse_sharded",
    "register_hook",
    "register_vmap",
    "reshard",
    "safe_globals",
    "set_reshard",
    "tell_if_newer",
    "traceable",
    "untraced_shape",
    "unwrapped",
    "without_side_effect_checks",
]

logger = logging.getLogger("attn_plugins")

VERSION: tuple[int, int] = tuple(int(part) for part in torch.__version__.split(".")[:2])  # type: ignore[assignment]
"""Major and minor release of the torch that is installed."""

TESTED: tuple[int, int] = (2, 14)
"""The newest release that the tests were run with. A newer one is used, and told once in the log."""

ATEN_SOFTMAX: tuple[Any, ...] = (
    torch._softmax,
    torch.ops.aten.softmax,
    torch.ops.aten.softmax.int,
    torch.ops.aten._softmax,
    torch.ops.aten._softmax.default,
)
"""Softmax below ``F.softmax``."""

FUSED_LAYERS: tuple[Any, ...] = (torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd)
"""Kernels of torch's own that compute a whole layer, its softmax included."""


@functools.cache
def tell_if_newer() -> None:
    """One line in the log, where torch is newer than the tests know: nothing is refused for it."""
    if VERSION > TESTED:
        newest = ".".join(map(str, TESTED))
        logger.warning(
            "torch %s is newer than %s, the newest that attn_plugins was tested with", torch.__version__, newest
        )


def needs(version: tuple[int, int], what: str) -> None:
    """Refuse ``what`` where torch is older than ``version``.

    Raises:
        ValueError: torch is older.
    """
    if version > VERSION:
        wanted = ".".join(map(str, version))
        raise ValueError(f"{what} needs torch {wanted} or later, and {torch.__version__} is installed; the rest works")


# --- torch.library


def register_vmap(operator: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``operator.register_vmap``, which is of torch 2.5; before, ``torch.func.vmap`` calls the operator in a loop."""
    if hasattr(operator, "register_vmap"):
        register: Callable[[Callable[..., Any]], Callable[..., Any]] = operator.register_vmap
        return register
    return lambda function: function


# --- tracing


def forward_mode() -> bool:
    """Whether forward-mode derivatives are being taken (``torch.func.jvp``, ``torch.autograd.forward_ad``)."""
    return forward_ad._current_level >= 0


def untraced_shape(tensor: Tensor) -> Sequence[int]:
    """The shape of ``tensor`` as numbers inside ``torch.jit.trace``, which has tensors for them."""
    bindings: Any = torch._C
    state = bindings._get_tracing_state()
    bindings._set_tracing_state(None)
    try:
        return tensor.shape
    finally:
        bindings._set_tracing_state(state)


def exporting_to_onnx() -> bool:
    """``torch.onnx.is_in_onnx_export()``, without importing the exporter to ask."""
    flags = sys.modules.get("torch.onnx._internal.exporter._flags")
    return flags is not None and bool(flags._is_onnx_exporting)


# What torch.compiler.assume_constant_result sets; calling that would import all of dynamo with this package.
exporting_to_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


if hasattr(torch.compiler, "is_exporting"):
    exporting = torch.compiler.is_exporting
else:

    def exporting() -> bool:
        """Whether ``torch.export`` is tracing, which torch tells since 2.7; before, it is asked as torch.compile is."""
        return torch.compiler.is_compiling()


def without_side_effect_checks(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)`` under ``torch.compile``, its side effects undone before it returns.

    Without that, torch.compile refuses them under activation checkpointing; torch before 2.8 always does.
    """
    if VERSION >= (2, 8):
        from torch._dynamo.utils import _disable_side_effect_safety_checks_for_current_subtracer as trusted

        return trusted(function, *args, **kwargs)
    return function(*args, **kwargs)


def traceable(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``; before torch 2.6, whose torch.compile cannot trace it, one that torch.compile leaves eager.

    It then breaks the graph there, and with ``fullgraph=True`` names the function and refuses.
    """
    return function if VERSION >= (2, 6) else torch.compiler.disable(function)


def load_dynamo() -> None:
    """Import ``torch._dynamo``, which makes tables of torch's functions: before any of them is replaced."""
    import torch._dynamo  # noqa: F401


def assert_in_graph(condition: Any, message: str) -> None:
    """An assertion that ``torch.fx`` records."""
    torch._assert(condition, message)


def is_operator_namespace(value: Any) -> bool:
    """Whether ``value`` is ``torch.ops``, a namespace in it or an operator, whose parts are made when asked for."""
    return isinstance(value, (type(torch.ops), type(torch.ops.aten), torch._ops.OpOverloadPacket))


def leaves(output: Any) -> list[Any]:
    """What nested lists, tuples and dicts hold, in order."""
    return tree_flatten(output)[0]


# --- nn.Module


def register_hook(module: nn.Module, kind: str, function: Callable[..., Any]) -> None:
    """``module.register_<kind>(function)`` of a ``state_dict_post_hook`` or a ``load_state_dict_pre_hook``.

    Both are public since torch 2.5; before, the first is called ``_register_state_dict_hook``, and the second, with a
    leading underscore too, is asked to give the module.
    """
    if hasattr(module, f"register_{kind}"):
        getattr(module, f"register_{kind}")(function)
    elif kind == "state_dict_post_hook":
        module._register_state_dict_hook(function)
    else:
        module._register_load_state_dict_pre_hook(function, with_module=True)


# --- torch.load


def add_safe_globals(allowed: Sequence[Any]) -> None:
    """Let ``torch.load(weights_only=True)`` take ``allowed``: objects, or ``(object, name in the file)``."""
    torch.serialization.add_safe_globals([_allowed(entry) for entry in allowed])


def safe_globals(allowed: Sequence[Any]) -> contextlib.AbstractContextManager[None]:
    """A context in which ``torch.load(weights_only=True)`` takes ``allowed`` beside what it takes anyway."""
    known = torch.serialization.get_safe_globals()
    new = [_allowed(entry) for entry in allowed if entry not in known]
    return torch.serialization.safe_globals(new) if VERSION >= (2, 5) else _safe_globals(new, known)


@contextlib.contextmanager
def _safe_globals(new: list[Any], known: list[Any]) -> Iterator[None]:
    """That context for torch 2.4, which has the list and no context."""
    torch.serialization.add_safe_globals(new)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(known)


def _allowed(entry: Any) -> Any:
    """``(object, name)``, which torch takes since 2.6; before, a function that goes by that name."""
    if VERSION >= (2, 6) or not isinstance(entry, tuple):
        return entry
    called, name = entry
    if name == f"{called.__module__}.{called.__qualname__}":
        return called

    def alias(*args: Any, **kwargs: Any) -> Any:
        return called(*args, **kwargs)

    alias.__module__, _, alias.__name__ = name.rpartition(".")
    return alias


# --- several processes

_SDPA = torch._C._nn.scaled_dot_product_attention  # which ``nn.functional`` has but inside ``context_parallel``


def refuse_context_parallel() -> None:
    """Refuse to compute inside torch's ``context_parallel``, under ``torch.compile`` too, which guards what is read.

    There a model is given its process's part of the sequence as plain tensors, and the function that stands in for
    torch's SDPA gathers the rest. Attention that does not ask it sees that part alone.

    Raises:
        UnsupportedModelError: this is inside ``context_parallel``; with ``fullgraph=True`` dynamo's ``Unsupported``.
    """
    now: Any = nn.functional.scaled_dot_product_attention
    if now is not _SDPA and (getattr(now, "__module__", None) or "").startswith("torch.distributed."):
        raise UnsupportedModelError(
            "attention was called inside torch's context_parallel: context- and sequence-parallel attention is not "
            "supported, since every row of weights needs all its keys in one process. Leave context_parallel, and "
            "shard batches (DDP, FSDP) or heads (ColwiseParallel) instead"
        )


def refuse_sharded(*tensors: Tensor) -> None:
    """Refuse ``DTensor``s: keys that are spread over processes.

    Raises:
        UnsupportedModelError: one of ``tensors`` is a DTensor.
    """
    for tensor in tensors:
        placements = None if type(tensor) is Tensor else getattr(tensor, "placements", None)
        if isinstance(placements, tuple):  # of a proxy of torch.fx, any attribute is another proxy
            raise UnsupportedModelError(
                f"attention was given a DTensor with placements {placements}: context- and sequence-parallel attention "
                "is not supported, since every row of weights needs all its keys in one process. Gather it before "
                "(x.full_tensor()), or shard batches (DDP, FSDP) or heads (ColwiseParallel) instead"
            )


def reshard() -> Callable[..., Any]:
    """FSDP1's function that frees a unit's gathered parameters: ``(state, handle, free)``."""
    import torch.distributed.fsdp._runtime_utils as runtime

    function: Callable[..., Any] = runtime._reshard
    return function


def set_reshard(function: Callable[..., Any]) -> None:
    """Put ``function`` in the place of ``reshard``."""
    import torch.distributed.fsdp._runtime_utils as runtime

    runtime._reshard = function


_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


def unwrapped(name: str) -> str:
    """The name of a parameter or module without what FSDP, checkpointing and ``torch.compile`` put into it."""
    name += "."
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removesuffix(".")
