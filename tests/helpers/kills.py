"""Kill an action at a moment of its own, as a scheduler or the system would."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

__all__ = ["killed"]


def killed(action: Callable[[], object], within: float, draw: random.Random) -> bool:
    """Run `action` in a forked process and kill that with SIGKILL after up to `within` seconds.

    Returns:
        Whether it was killed; False if it had come to its end.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)  # not back into pytest
    time.sleep(draw.random() * within)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the action failed by itself"
    return os.WIFSIGNALED(status)
