"""Count the optimizer's steps of a trainer that nobody edited, for what goes along with them.

A network that is built is followed before any optimizer exists. The first optimizer that makes a step and holds some
of its parameters is the one whose steps count. Teachers, which no optimizer holds, go along with the first of all.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

__all__ = ["follow", "is_rehearsal", "steps_made"]

Step = Callable[[bool, Optimizer], object]
"""Called after every step that counts, with whether an optimizer holds parameters of the network, and which counts."""

_followed: weakref.WeakKeyDictionary[nn.Module, list[Step]] = weakref.WeakKeyDictionary()
_drivers: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Optimizer]] = weakref.WeakKeyDictionary()
_first: list[weakref.ref[Optimizer]] = []
_installed = False


def follow(network: nn.Module, step: Step) -> None:
    """From now on call ``step`` after each optimizer step of ``network``; for as long as both live."""
    global _installed
    _followed.setdefault(network, []).append(step)
    if not _installed:
        register_optimizer_step_post_hook(_after_step)
        _installed = True


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling() or is_rehearsal(optimizer):
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for network in list(_followed):
        if network not in _drivers and any(id(parameter) in held for parameter in network.parameters()):
            _drivers[network] = weakref.ref(optimizer)
            if not _first or _first[0]() is None:
                _first[:] = [weakref.ref(optimizer)]
    for network, steps in list(_followed.items()):
        own = _drivers.get(network)
        driver = own() if own is not None else (_first[0]() if _first else None)
        if driver is optimizer:
            for step in steps:
                step(own is not None, optimizer)


def is_rehearsal(optimizer: Optimizer) -> bool:
    """Whether the step that has just ended trained nothing: every rate and every gradient is zero.

    ``torch.distributed.checkpoint`` makes such a step, so that there is a state to load one into. A warm-up from zero
    has gradients.
    """
    rates = [group.get("lr", 1) for group in optimizer.param_groups]
    # One on a GPU is none of that module's, and is not waited for.
    if any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates) or any(map(float, rates)):
        return False
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    gradients = (parameter.grad for parameter in parameters if parameter.grad is not None)
    return not any(bool(getattr(gradient, "_local_tensor", gradient).any()) for gradient in gradients)


def steps_made(optimizer: Optimizer) -> int:
    """How many steps the optimizer has made, those before it was loaded from a checkpoint too, as its state tells.

    Optimizers that count nothing (SGD) are taken to have made the one that has just ended. On a GPU this waits.
    """
    counts = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    return max(counts, default=1)
