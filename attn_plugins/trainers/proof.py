"""Say in a trainer's log how many attention calls each patched layer has answered: that the spec is what trains."""

from __future__ import annotations

import atexit
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..patching import ANSWERED, NORMALIZER
from .following import is_rehearsal
from .messages import say

__all__ = ["tell_answers"]

_waiting: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_installed = False


def tell_answers(network: nn.Module, spec: str) -> None:
    """After the first optimizer step of any optimizer, or at the end without one, log the counts of ``network``."""
    global _installed
    _waiting[network] = spec
    if not _installed:
        register_optimizer_step_post_hook(_after_step)
        atexit.register(_tell, "at the end")
        _installed = True


def _after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    # A compiled step is not broken up for it: told at the end.
    if not torch.compiler.is_compiling() and not is_rehearsal(optimizer):
        _tell("after the first training step")


def _tell(when: str) -> None:
    for network, spec in list(_waiting.items()):
        say(f"{when}, {type(network).__name__} with {spec}: {_summary(network)}")
    _waiting.clear()


def _summary(network: nn.Module) -> str:
    layers = {path: module for path, module in network.named_modules() if hasattr(module, NORMALIZER)}
    counts = {path: int(getattr(module, ANSWERED, 0)) for path, module in layers.items()}
    some = sorted({count for count in counts.values() if count})
    told = f"{sum(count > 0 for count in counts.values())} of {len(counts)} layers have answered attention calls"
    if some:
        told += f", {some[0]} each" if len(some) == 1 else f", {some[0]} to {some[-1]} each"
    silent = [path or "(model)" for path, count in counts.items() if not count]
    if silent:
        told += f"; none outside of compiled code: {', '.join(silent)}"
    return told
