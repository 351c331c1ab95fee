"""A ``Monitor`` for trainers that nobody edited: by an environment variable, which the launcher's option sets."""

from __future__ import annotations

import os

from torch import nn
from torch.optim.optimizer import Optimizer

from ..training import Monitor
from .following import follow, steps_made
from .messages import say

__all__ = ["EVERY", "MONITOR", "asked", "watch_network"]

MONITOR = "ATTN_PLUGINS_MONITOR"
"""Environment variable: the sinks of a ``Monitor``, separated by commas: ``run.jsonl,tensorboard:runs``."""
EVERY = "ATTN_PLUGINS_MONITOR_EVERY"
"""Environment variable: steps from one observation to the next."""


def asked() -> bool:
    """Whether a monitor is asked for."""
    return bool(os.environ.get(MONITOR))


def watch_network(network: nn.Module) -> None:
    """Watch a patched network, if a monitor is asked for and an optimizer turns out to train it.

    Raises:
        ValueError: the variables name no sink, or no number of steps.
    """
    if not asked():
        return
    sinks = [part.strip() for part in os.environ[MONITOR].split(",") if part.strip()]
    every = os.environ.get(EVERY, "100")
    if not every.isdecimal():
        raise ValueError(f"{EVERY} is a number of steps, not {every!r}")
    monitor = Monitor(network, sinks, every=int(every))
    begun = False

    def step(trained: bool, optimizer: Optimizer) -> None:
        nonlocal begun
        if not trained:  # a teacher
            monitor.close()
            return
        if not begun and steps_made(optimizer) > 1:  # a run that goes on
            monitor.load_state_dict({"steps": steps_made(optimizer)})
        else:
            observation = monitor.step()
            if observation is not None:
                told = ", ".join(f"{name} {value:.4g}" for name, value in observation.means().items())
                say(f"step {observation.step}: {told}")
        begun = True

    follow(network, step)
