"""Counts are printed where pytest shows them, whatever it captures."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line past pytest's capturing."""

    def print_it(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", flush=True)

    return print_it
