"""Callbacks for (PyTorch) Lightning, whichever of the two packages the trainer is of."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

from .anneal import Anneal
from .monitor import Monitor

if "lightning" in sys.modules:
    from lightning.pytorch import Callback
else:
    try:
        from pytorch_lightning import Callback
    except ModuleNotFoundError:
        from lightning.pytorch import Callback

__all__ = ["AnnealCallback", "MonitorCallback"]


class MonitorCallback(Callback):
    """A ``Monitor`` of a Lightning module; its scalars go to the trainer's loggers, beside its own sinks.

    >>> trainer = Trainer(callbacks=[MonitorCallback("run.jsonl", every=50)])

    Args:
        sinks, options: as ``Monitor`` takes them.
        model: the patched model in the Lightning module, by its name (``"student.backbone"``); "" is the whole.
    """

    def __init__(self, sinks: Any = (), *, model: str = "", **options: Any) -> None:
        super().__init__()
        self.sinks, self.path, self.options = sinks, model, options
        self.monitor: Monitor | None = None
        self._state: dict[str, int] | None = None

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin, or go on where a checkpoint stopped.

        Raises:
            ValueError, AttributeError: as ``Monitor``; or the module has no model of that name.
        """
        self.monitor = Monitor(pl_module.get_submodule(self.path), self.sinks, **self.options)
        if self._state is not None:
            self.monitor.load_state_dict(self._state)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count optimizer steps, which accumulated gradients make fewer than batches."""
        assert self.monitor is not None
        if trainer.global_step <= self.monitor.steps:
            return
        seen = self.monitor.step()
        if seen is not None:
            for logger in trainer.loggers:
                logger.log_metrics({f"attention/{name}": value for name, value in seen.means().items()}, seen.step)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        if self.monitor is not None:
            self._state = self.monitor.state_dict()
            self.monitor.close()
            self.monitor = None

    def state_dict(self) -> dict[str, int]:
        return self.monitor.state_dict() if self.monitor is not None else self._state or {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._state = state_dict or None


class AnnealCallback(Callback):
    """An ``Anneal`` of models in a Lightning module, patched before optimizers and strategies take them.

    >>> trainer = Trainer(callbacks=[AnnealCallback("entmax15", steps=10_000, models=["student", "teacher"])])

    Args:
        spec, options: as ``Anneal`` takes them.
        models: names of models in the Lightning module; "" is the whole.
    """

    def __init__(self, spec: str, *, models: Sequence[str] = ("",), **options: Any) -> None:
        super().__init__()
        self.spec, self.paths, self.options = spec, tuple(models), options
        self.anneal: Anneal | None = None

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Patch the models, once; a checkpoint that is loaded afterwards tells where the schedule stands.

        Raises:
            ValueError, AttributeError: as ``Anneal``; or the module has no model of that name.
        """
        if self.anneal is None:
            self.anneal = Anneal([pl_module.get_submodule(path) for path in self.paths], self.spec, **self.options)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count optimizer steps, which accumulated gradients make fewer than batches."""
        assert self.anneal is not None
        if trainer.global_step > self.anneal.steps:
            self.anneal.step()
