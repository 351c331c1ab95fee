"""A folder in which one distillation keeps how far it is, so that a run that was killed goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import read
from ..files import read_json, remove_abandoned, write_text, written

__all__ = ["Folder", "forget"]

ABOUT, SNAPSHOT = "run.json", "snapshot.pt"


class Folder:
    """``run.json``, which says what the run is, and ``snapshot.pt``.

    Args:
        path: the folder; made where it is missing.
        run: what the result depends on, as JSON has it.

    Raises:
        ValueError: another run is in the folder, or something else; what differs is named.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path, self.run = path, json.loads(json.dumps(run))
        self.about, self.snapshot = path / ABOUT, path / SNAPSHOT
        if self.about.exists():
            self._compare(read_json(self.about))
        elif path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} is there and holds no run of adapt (no run.json); name another folder")

    def _compare(self, held: Any) -> None:
        theirs = held.get("run") if isinstance(held, dict) else None
        if not isinstance(theirs, dict):
            raise ValueError(f"{self.about} says nothing of a run; name another folder")
        differing = [
            f"{name} was {theirs.get(name)!r:.60} and is {self.run.get(name)!r:.60}"
            for name in sorted(theirs.keys() | self.run.keys())
            if theirs.get(name) != self.run.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds another run: {'; '.join(differing)}. Name another folder, or say what that run "
                "was started with to go on with it"
            )

    @property
    def steps(self) -> int | None:
        """How many the run was found to have; None before it has begun."""
        if not self.about.exists():
            return None
        return int(read_json(self.about)["steps"])

    def begin(self, steps: int) -> None:
        """Make the folder this run's, of so many steps."""
        self.path.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.snapshot)
        if not self.about.exists():
            write_text(self.about, json.dumps({"run": self.run, "steps": steps}, indent=2) + "\n")

    def keep(self, state: Mapping[str, Any]) -> None:
        """Write a snapshot, whole or not at all."""
        with written(self.snapshot) as partial, partial.open("wb") as file:
            torch.save(dict(state), file)

    def kept(self) -> dict[str, Any] | None:
        """The last snapshot; None before there is one. Nothing in it is run."""
        if not self.snapshot.exists():
            return None
        held: dict[str, Any] = read(self.snapshot)
        return held


def forget(path: Path) -> None:
    """Remove the snapshots of a run that is finished."""
    for name in (SNAPSHOT, ABOUT):
        (path / name).unlink(missing_ok=True)
    path.rmdir()
