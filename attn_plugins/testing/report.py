"""What a check of a plugin found, and how its properties are run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..text import columns

__all__ = ["Check", "CheckFailed", "Report", "close", "run_checks"]


class CheckFailed(AssertionError):
    """A property does not hold.

    Attributes:
        property: its name.
    """

    def __init__(self, subject: str, name: str, reason: str) -> None:
        super().__init__(f"{subject}: {name}: {reason}")
        self.property = name


@dataclass(frozen=True)
class Check:
    """One property that holds, or was left out.

    Attributes:
        property: its name.
        result: "holds", "skipped", or why there was nothing to check.
    """

    property: str
    result: str


class Report(list[Check]):
    """The properties of one plugin; prints as a table.

    Attributes:
        subject: its name.
    """

    subject: str = ""

    def __str__(self) -> str:
        return "\n".join([self.subject, *columns([(check.property, check.result) for check in self])])


def run_checks(subject: str, checks: Mapping[str, Callable[[], str | None]], skip: Collection[str]) -> Report:
    """Run checks in order; one returns why there was nothing to check, if there was not, and raises if it fails.

    Raises:
        CheckFailed: the first that fails, whatever it raises.
        ValueError: ``skip`` names no property.
    """
    unknown = sorted(set(skip) - checks.keys())
    if unknown:
        raise ValueError(f"skip={unknown} are no properties of {subject}; there are {', '.join(checks)}")
    report = Report()
    report.subject = subject
    for name, check in checks.items():
        try:
            result = "skipped" if name in skip else check() or "holds"
        except AssertionError as error:
            raise CheckFailed(subject, name, str(error)) from error
        except Exception as error:
            raise CheckFailed(subject, name, f"{type(error).__name__}: {error}") from error
        report.append(Check(name, result))
    return report


def close(got: Any, expected: Tensor, what: str, atol: float = 1e-6) -> None:
    """Raise ``AssertionError`` unless ``got`` equals ``expected`` within ``atol``; NaN equals nothing."""
    assert isinstance(got, Tensor), f"{what} gives {type(got).__name__}, not a tensor"
    assert got.shape == expected.shape, f"{what} gives shape {tuple(got.shape)} for {tuple(expected.shape)}"
    far = (got.double() - expected.double()).abs()
    off = far.max().item() if far.numel() else 0.0
    assert not torch.isnan(far).any() and off <= atol, f"{what} is off by {off:.1e} ({got.dtype})"
