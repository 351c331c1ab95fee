"""How many attention calls this thread has answered: what proves that a patched layer ran as it says."""

from __future__ import annotations

import threading

__all__ = ["answers", "note_answer"]


class _Count(threading.local):
    answers = 0


_COUNT = _Count()


def note_answer() -> None:
    """One more attention was computed with a normalizer of this package."""
    _COUNT.answers += 1


def answers() -> int:
    """The number so far, in this thread."""
    return _COUNT.answers
