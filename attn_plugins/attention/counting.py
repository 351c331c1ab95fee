"""How many attention calls this thread has answered, and for which layer: what proves that a patched layer ran.

An observer (``observed``) is told every answer, while ``attn_plugins.verify`` runs. Watchers (``watch``)
are told what is about to be computed, and compute what they want to know of it themselves.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = [
    "answers",
    "layer",
    "note_answer",
    "observed",
    "observing",
    "tell_watchers",
    "unwatch",
    "watch",
    "within",
]

Observer = Callable[..., None]
Watcher = Callable[..., None]


class _State(threading.local):
    answers = 0
    layer: Any = None
    observer: Observer | None = None


_STATE = _State()


def note_answer() -> None:
    """One more attention was computed with a normalizer of this package."""
    _STATE.answers += 1


def answers() -> int:
    """The number so far, in this thread."""
    return _STATE.answers


def layer() -> Any:
    """The patched layer whose forward runs in this thread, or None."""
    return _STATE.layer


def within(module: Any) -> Any:
    """Make ``module`` that layer; returns the one before, to be put back."""
    before, _STATE.layer = _STATE.layer, module
    return before


def observing() -> Observer | None:
    """What wants to be told every answer, or None."""
    return _STATE.observer


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Within this context ``observer(layer, backend=, weights=, output=, reference=)`` is told every answer."""
    before, _STATE.observer = _STATE.observer, observer
    try:
        yield
    finally:
        _STATE.observer = before


_WATCHERS: list[Watcher] = []


def watch(watcher: Watcher) -> None:
    """From now on ``watcher(layer, call=)`` is told every attention of eager code, in any thread, before it runs.

    Attention whose scores the layer's own code has made is told as ``watcher(layer, weights=, heads=)``. A watcher
    is called within the training step: it waits for nothing, and leaves gradients and random numbers alone.
    """
    if watcher not in _WATCHERS:
        _WATCHERS.append(watcher)


def unwatch(watcher: Watcher) -> None:
    """No longer."""
    if watcher in _WATCHERS:
        _WATCHERS.remove(watcher)


def tell_watchers(module: Any, **told: Any) -> None:
    """Tell them of an attention of the layer ``module``."""
    for watcher in tuple(_WATCHERS):
        watcher(module, **told)
