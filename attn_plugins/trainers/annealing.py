"""``entmax_anneal`` in trainers that nobody edited: alpha goes along with the optimizer's steps."""

from __future__ import annotations

import weakref

from torch import nn
from torch.optim.optimizer import Optimizer

from ..functional.anneal import annealed
from ..training.anneal import arrange
from .following import follow
from .messages import say

__all__ = ["anneal_network"]

_leading: list[weakref.ref[nn.Module]] = []
"""The network whose steps count: the first that an optimizer turned out to train."""


def anneal_network(network: nn.Module) -> None:
    """Let alpha of every annealed layer in this process go along with the steps of ``network``, if it has such.

    Of every layer: averaged copies that the trainer makes of it are annealed too, whoever makes them.
    """
    if not arrange(network):
        return
    follows = weakref.ref(network)

    def step(trained: bool, optimizer: Optimizer) -> None:
        if not _leading or _leading[0]() is None:
            if not trained:
                return
            _leading[:] = [follows]
        here = follows()
        if here is None or _leading[0]() is not here:
            return
        layers = arrange(here)
        after = layers[0].step + 1
        begun = layers[0].step == 0 or not getattr(step, "told", False)
        was_at_end = all(layer.value == layer.end for layer in layers)
        for layer in annealed():
            layer.set_step(after)
        values = [layer.value for layer in layers]
        at_end = all(layer.value == layer.end for layer in layers)
        if begun or at_end != was_at_end:
            say(f"entmax_anneal: after step {after}, alpha is {min(values):g} to {max(values):g}")
            step.told = True  # type: ignore[attr-defined]

    follow(network, step)
