"""Progress of long work on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm

__all__ = ["Progress", "printed_progress"]

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def printed_progress(what: str) -> Progress:
    """A tqdm bar on a terminal; in a log, a line of it every ten seconds and the last."""
    bar: tqdm[None] | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            live = sys.stderr.isatty()
            bar = tqdm(desc=what, total=total, file=sys.stderr, mininterval=0.1 if live else 10)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show
