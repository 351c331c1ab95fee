"""Beside a training run: :class:`Monitor` shows what its attention looks like."""

from .monitor import Monitor
from .rows import LayerRows, Observation
from .sinks import read_run

__all__ = ["LayerRows", "Monitor", "Observation", "read_run"]
