"""Where a ``Monitor`` writes: JSON Lines, TensorBoard, Weights & Biases, or a function of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import write_bytes
from .rows import METRICS, LayerRows, Observation

__all__ = ["JsonLines", "Scalars", "Sink", "read_run", "sink_of"]

Sink = Callable[[Observation], object]
"""Called with each of them; its ``close()``, if it has one, at the end."""


class JsonLines:
    """A line of JSON for each observation, with every layer and head; ``attn-plugins analyze monitor`` draws it.

    Lines are added to a file that is there: a run that resumes goes on in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent} is no folder: make it, or name another file for {path.name}")
        if path.exists():  # a killed run may have left half a line
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):
                write_bytes(path, content[: content.rfind(b"\n") + 1])

    def __call__(self, observation: Observation) -> None:
        line = json.dumps(asdict(observation)) + "\n"
        with self.path.open("a", encoding="utf-8") as file:  # one write, so that a killed run leaves whole lines
            file.write(line)


class Scalars:
    """Means over the heads of each layer, and over all, as scalars of TensorBoard or W&B."""

    def __init__(self, write: Callable[[dict[str, float], int], object], close: Callable[[], object] | None) -> None:
        self.write, self._close = write, close

    def __call__(self, observation: Observation) -> None:
        values = {f"attention/{name}": value for name, value in observation.means().items()}
        for layer in observation.layers:
            for name in (*METRICS, "alpha"):
                found = getattr(layer, name)
                if found is not None:
                    values[f"attention_{name}/{layer.layer or 'model'}"] = sum(found) / len(found)
        self.write(values, observation.step)

    def close(self) -> None:
        if self._close is not None:
            self._close()


def sink_of(given: Any) -> Sink:
    """The sink that is meant: see ``Monitor``.

    Raises:
        ValueError: it is none.
        ModuleNotFoundError: what it needs is not installed.
    """
    if isinstance(given, Path) or (isinstance(given, str) and given.endswith(".jsonl")):
        return JsonLines(Path(given))
    if isinstance(given, str) and given.partition(":")[0] == "tensorboard" and given.partition(":")[2]:
        from torch.utils.tensorboard import SummaryWriter

        return _tensorboard(SummaryWriter(given.partition(":")[2]), own=True)
    if given == "wandb":
        import wandb

        if wandb.run is None:
            raise ValueError("the sink 'wandb' is the active run, and there is none: call wandb.init() first")
        return _wandb(wandb.run)
    if hasattr(given, "add_scalar"):
        return _tensorboard(given, own=False)
    if hasattr(given, "log") and hasattr(given, "config"):
        return _wandb(given)
    if callable(given):
        function: Sink = given
        return function
    raise ValueError(
        f"{given!r} is no sink: use FILE.jsonl, 'tensorboard:FOLDER', 'wandb', a SummaryWriter, a W&B run or a function"
    )


def _tensorboard(writer: Any, own: bool) -> Scalars:
    def write(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Scalars(write, writer.close if own else None)


def _wandb(run: Any) -> Scalars:
    # Without step=: W&B's own counter is the trainer's, and a value behind it would be dropped.
    return Scalars(lambda values, step: run.log({**values, "attention/step": step}), None)


def read_run(path: Path) -> list[Observation]:
    """Observations of a file of ``JsonLines``, by step; of a step that was made twice (a resumed run), the last.

    A last line that a killed run left half is not read.

    Raises:
        ValueError: the file cannot be read, another line is none of an observation, or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable file of a Monitor: {error}") from error
    found: dict[int, Observation] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line) if line.strip() else None
            if record is not None:
                layers = tuple(LayerRows(**layer) for layer in record["layers"])
                found[int(record["step"])] = Observation(int(record["step"]), str(record["spec"]), layers)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}, is no observation of a Monitor: {error!r}") from error
    if not found:
        raise ValueError(f"{path} holds no observation of a Monitor")
    return [found[step] for step in sorted(found)]
