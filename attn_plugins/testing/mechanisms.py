"""Whether a token mechanism does what ``patch`` promises."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import nn

from ..patching import PREFIX, patch
from ..registry import MECHANISMS
from ..spec import Spec, parse
from .models import Tried, additions, snapshot, unlike
from .report import Report, close, run_checks

__all__ = ["check_mechanism"]


def check_mechanism(
    spec: str | Spec, model: nn.Module, *inputs: Any, skip: Collection[str] = (), **kwargs: Any
) -> Report:
    """Check a token mechanism on a model.

    Properties, in this order: ``forward`` (it runs, and the outputs have the shapes that they have without it),
    ``names`` (what it stores on modules begins with ``attn_plugins_``), ``check`` (``Mechanism.check`` changes
    nothing), ``all or nothing`` (where ``apply`` fails, the model is as before), ``gradient`` (each parameter that it
    adds gets one), ``state dict`` (goes into another patched model), ``again`` (patching again keeps what was
    learned), ``copies`` (deepcopy and pickle), ``unpatch`` (classes, attributes, hooks, values and outputs as before,
    bit for bit).

    Args:
        spec: with one mechanism or more, e.g. ``"mine:width=4"``.
        model: a ViT; it is copied and stays as it is.
        *inputs: what its forward takes, e.g. images ``[B, 3, H, W]``.
        **kwargs: likewise, by name.
        skip: properties to leave out.

    Raises:
        CheckFailed: the first property that does not hold.
        UnknownPluginError, UnsupportedModelError, ValueError: there is no such mechanism or property, or it does not
            fit the model.
    """
    wanted = parse(spec)
    if not wanted.mechanisms:
        raise ValueError(f"{wanted} names no token mechanism; check_normalizer is for normalizers")
    tried = Tried(model, inputs, kwargs)
    tried.patched(wanted)  # its own errors come before any property
    properties: dict[str, Callable[[], str | None]] = {
        "forward": lambda: _forward(tried, wanted),
        "names": lambda: _names(tried, wanted),
        "check": lambda: _fails(tried, wanted, "check"),
        "all or nothing": lambda: _fails(tried, wanted, "apply"),
        "gradient": lambda: _gradient(tried, wanted),
        "state dict": lambda: tried.check_state_dict(wanted),
        "again": lambda: tried.check_again(wanted),
        "copies": lambda: tried.check_copies(wanted),
        "unpatch": lambda: tried.check_unpatch(wanted),
    }
    return run_checks(f"mechanism {wanted} on {type(model).__qualname__}", properties, skip)


def _forward(tried: Tried, spec: Spec) -> None:
    before, after = tried.outputs(tried.copy()), tried.outputs(tried.patched(spec))
    shapes = [[tuple(out.shape) for out in outputs] for outputs in (before, after)]
    assert shapes[0] == shapes[1], f"the outputs have shapes {shapes[1]}, without it {shapes[0]}"
    assert all(out.isfinite().all() for out in after), "the outputs are NaN or infinite"


def _names(tried: Tried, spec: Spec) -> None:
    strange = [name for name in additions(tried.model, tried.patched(spec)) if PREFIX not in name]
    assert not strange, f"it adds {', '.join(strange)}; names that unpatch takes off begin with {PREFIX}"


class _Interrupted(Exception):
    """Raised by the check itself."""


def _fails(tried: Tried, spec: Spec, method: str) -> None:
    for plugin in spec.mechanisms:
        model = tried.copy()
        expected = tried.outputs(model)
        before = snapshot(model)
        with _failing(MECHANISMS.get(plugin.name), method):
            try:
                patch(model, spec)
            except _Interrupted:
                changed = unlike(before, snapshot(model))
                assert not changed, f"{method} of {plugin.name} failed, and the model has changed: {changed}"
                tried.alike(model, expected, f"the model after a {method} that failed")
                continue
        raise AssertionError(f"patch never called {method} of {plugin.name}, or swallowed its error")


@contextmanager
def _failing(cls: Any, method: str) -> Iterator[None]:
    """Within this context, ``cls.method`` raises when it is done."""
    original = getattr(cls, method)

    def failing(self: Any, *args: Any) -> None:
        original(self, *args)
        raise _Interrupted

    with mock.patch.object(cls, method, failing):
        yield


def _gradient(tried: Tried, spec: Spec) -> str | None:
    model = tried.patched(spec)
    gradients = tried.gradients(model)
    added = {name: grad for name, grad in gradients.items() if PREFIX in name}
    for name, grad in added.items():
        assert grad is not None, f"{name} gets no gradient: the forward does not use it"
        close(
            grad.isfinite().double(), grad.new_ones(grad.shape).double(), f"the share of finite gradients of {name}", 0
        )
    return None if added else "it adds no parameters"
