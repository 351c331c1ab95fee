"""``probe.json``: what a probe reached, of which backbone, on which data, under which settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..files import write_text

__all__ = [
    "FILE_NAME",
    "DataSplit",
    "Evaluation",
    "ProbeResult",
    "backbone_differences",
    "find_results",
    "read_result",
    "write_result",
]

FILE_NAME = "probe.json"
_ROLES = ("train", "val", "test")
# What tells two backbones apart: a file may have been moved or copied, its contents may not have changed. Files of the
# first release have neither `digest` nor `autocast`.
_DIGESTS = ("digest", "sha256")
_CHOICE = ("plugins", "layers", "norm", "cls_token", "autocast")
# Options that a test does not depend on.
_TRAINING = (
    "train_", "val_", "optim_wrapper", "param_scheduler", "auto_scale_lr", "default_hooks", "custom_hooks",
    "randomness",
)  # fmt: skip


@dataclass(frozen=True)
class DataSplit:
    """One split of a data set, as a probe read it.

    Attributes:
        dataset: class of the data set, ``PascalVOCDataset``.
        root: the data root, absolute.
        split: its split file, or the folder of its images where there is none; relative to the root.
        images: how many.
    """

    dataset: str
    root: str
    split: str
    images: int

    def __str__(self) -> str:
        return f"{self.split} in {self.root} ({self.dataset}, {self.images} images)"


@dataclass(frozen=True)
class Evaluation:
    """One validation or test.

    Attributes:
        split: ``val`` or ``test``.
        iteration: optimizer steps done; 0 for a test.
        metrics: {name: value}.
    """

    split: str
    iteration: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ProbeResult:
    """What one work dir holds: one probe of one backbone on one data set.

    Attributes:
        probe: the config's ``probe``, which names the table's column.
        max_iters: iterations that the training goes for.
        backbone: the identity of ``FrozenViT``: ``plugins``, ``plugins_source``, ``checkpoint``, ``digest``,
            ``layers``, …
        evaluations: in the order of their iterations.
        data: {``train``, ``val`` or ``test``: split}; empty in files of the first release.
        overrides: {option: value} that differ from the shipped config; None in files of the first release.
    """

    probe: str | None
    max_iters: int
    backbone: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...] = ()
    data: Mapping[str, DataSplit] = field(default_factory=dict)
    overrides: Mapping[str, Any] | None = None

    @property
    def backbone_key(self) -> str:
        """The same for all probes of one backbone under one spec, whatever features they take of it."""
        digest = self.backbone.get("digest") or self.backbone.get("sha256") or self.backbone.get("arch")
        return f"{digest} {self.backbone.get('plugins')}"

    def evaluations_of(self, split: str) -> tuple[Evaluation, ...]:
        return tuple(evaluation for evaluation in self.evaluations if evaluation.split == split)

    def with_evaluation(self, new: Evaluation) -> ProbeResult:
        """With one more; those that a resumed run repeats, of this iteration and later, are replaced."""
        kept = [e for e in self.evaluations if e.split != new.split or e.iteration < new.iteration]
        return replace(self, evaluations=(*kept, new))

    def differences(self, other: ProbeResult) -> list[str]:
        """What makes ``other`` another run, one line each; what one of the two does not say is not compared."""
        told = []
        if self.probe != other.probe:
            told.append(f"probe: {self.probe}, now {other.probe}")
        differ = backbone_differences(self.backbone, other.backbone)
        told += [f"backbone's {key}: {was!r}, now {now!r}" for key, (was, now) in differ.items()]
        for role in _ROLES:
            was, now = self.data.get(role), other.data.get(role)
            if was is not None and now is not None and was != now:
                told.append(f"{role} data: {was}, now {now}")
        if self.overrides is None or other.overrides is None:
            return told
        both_train = "train" in self.data and "train" in other.data
        for key in sorted({*self.overrides, *other.overrides}):
            before, after = self.overrides.get(key, "default"), other.overrides.get(key, "default")
            if before != after and (both_train or not key.startswith(_TRAINING)):
                told.append(f"{key}: {before!r}, now {after!r}")
        return told

    def continued_by(self, run: ProbeResult) -> ProbeResult:
        """This result with what a run adds that goes on with it, or tests it: the data that it reads.

        Raises:
            ValueError: it is another run; all that differs is named.
        """
        differences = self.differences(run)
        if differences:
            raise ValueError("; ".join(differences))
        settings = self if "train" in self.data and "train" not in run.data else run
        return replace(settings, backbone=run.backbone, evaluations=self.evaluations, data={**self.data, **run.data})


def backbone_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{what differs: (before, now)} of two identities of a ``FrozenViT``, as far as both tell it."""
    keys = [key for key in _DIGESTS if key in was and key in now][:1]
    keys += [key for key in _CHOICE if key in was and key in now]
    return {key: (was[key], now[key]) for key in keys if was[key] != now[key]}


def write_result(folder: Path, result: ProbeResult) -> None:
    """Write ``folder/probe.json``, whole or not at all."""
    contents = {
        "probe": result.probe,
        "max_iters": result.max_iters,
        "backbone": dict(result.backbone),
        "data": {role: asdict(split) for role, split in result.data.items()},
        "overrides": None if result.overrides is None else dict(result.overrides),
        "evaluations": [
            {"split": e.split, "iter": e.iteration, "metrics": dict(e.metrics)} for e in result.evaluations
        ],
    }
    write_text(folder / FILE_NAME, json.dumps(contents, indent=1) + "\n")


def read_result(file: Path) -> ProbeResult:
    """Read a ``probe.json``, of this release or the first.

    Raises:
        ValueError: the file is damaged, or no probe's; it is named.
    """
    try:
        return _parsed(json.loads(file.read_text()))
    # RecursionError: brackets nested by the thousand.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__} {error}") from error


def _parsed(contents: Any) -> ProbeResult:
    evaluations = tuple(
        Evaluation(
            _typed(entry["split"], str),
            _typed(entry["iter"], int),
            {_typed(name, str): _number(value) for name, value in entry["metrics"].items()},
        )
        for entry in contents["evaluations"]
    )
    data = {
        role: DataSplit(
            _typed(split["dataset"], str),
            _typed(split["root"], str),
            _typed(split["split"], str),
            _typed(split["images"], int),
        )
        for role, split in contents.get("data", {}).items()
    }
    probe, overrides = contents["probe"], contents.get("overrides")
    backbone = _typed(contents["backbone"], dict)
    _typed(backbone["plugins"], str)
    return ProbeResult(
        probe=None if probe is None else _typed(probe, str),
        max_iters=_typed(contents["max_iters"], int),
        backbone=backbone,
        evaluations=evaluations,
        data=data,
        overrides=None if overrides is None else _typed(overrides, dict),
    )


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {kind.__name__}, got {value!r:.80}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r:.80}")
    return float(value)


def find_results(work_dirs: Iterable[str | Path]) -> list[Path]:
    """Every ``probe.json`` below the given folders, each once.

    Raises:
        ValueError: there is none below one of them.
    """
    found: dict[Path, Path] = {}
    for folder in work_dirs:
        files = sorted(file for file in Path(folder).rglob(FILE_NAME) if file.is_file())
        if not files:
            raise ValueError(f"no {FILE_NAME} below {folder}: is it the work dir of a probe that has evaluated once?")
        found |= {file.resolve(): file for file in files}
    return list(found.values())
