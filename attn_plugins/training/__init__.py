"""Beside a training run: ``Monitor`` shows what its attention looks like, ``Anneal`` moves alpha."""

from .anneal import Anneal
from .monitor import Monitor
from .rows import LayerRows, Observation
from .sinks import read_run

__all__ = ["Anneal", "LayerRows", "Monitor", "Observation", "read_run"]
