"""Callbacks for transformers' ``Trainer``."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from .anneal import Anneal
from .monitor import Monitor

__all__ = ["AnnealCallback", "MonitorCallback"]


class MonitorCallback(TrainerCallback):
    """A ``Monitor`` of the model that a ``Trainer`` trains, by the trainer's own count of steps.

    >>> trainer = Trainer(model, arguments, callbacks=[MonitorCallback("run.jsonl", every=50)], ...)

    Args:
        sinks, options: as ``Monitor`` takes them.
    """

    def __init__(self, sinks: Any = (), **options: Any) -> None:
        self.sinks, self.options = sinks, options
        self.monitor: Monitor | None = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> None:
        """Begin, or go on where a checkpoint stopped.

        Raises:
            ValueError: as ``Monitor``.
        """
        assert model is not None
        self.monitor = Monitor(model, self.sinks, **self.options)
        self.monitor.load_state_dict({"steps": state.global_step})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.monitor is not None
        self.monitor.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.monitor is not None:
            self.monitor.close()


class AnnealCallback(TrainerCallback):
    """An ``Anneal`` of the model that a ``Trainer`` trains, patched as the trainer is made.

    >>> trainer = Trainer(model, arguments, callbacks=[AnnealCallback("entmax15", steps=10_000)], ...)

    Args:
        spec, options: as ``Anneal`` takes them.
    """

    def __init__(self, spec: str, **options: Any) -> None:
        self.spec, self.options = spec, options
        self.anneal: Anneal | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **kwargs: Any) -> None:
        """Patch the model.

        Raises:
            ValueError: as ``Anneal``.
        """
        assert model is not None
        self.anneal = Anneal(model, self.spec, **self.options)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, or go on where a checkpoint stopped."""
        assert self.anneal is not None
        self.anneal.load_state_dict({"steps": state.global_step})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.anneal is not None
        self.anneal.step()
