"""Progress of long work, in words."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

__all__ = ["Progress", "printed_progress"]

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def printed_progress(what: str) -> Progress:
    """Progress on stderr: one line that is rewritten on a terminal, a line every tenth in a log."""
    start = time.monotonic()
    live = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        step = 1 if live else max(total // 10, 1)
        if done % step and done != total:
            return
        rate = done / max(time.monotonic() - start, 1e-9)
        end = "\r" if live and done != total else "\n"
        print(f"{what}: {done}/{total}, {rate:.1f} a second", end=end, file=sys.stderr, flush=True)

    return show
