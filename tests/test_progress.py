"""Progress in a log and on a terminal."""

import io
from collections.abc import Iterable

import pytest

from attn_plugins.progress import printed_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, counts: Iterable[int], total: int) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    show = printed_progress("scenes")
    for done in counts:
        show(done, total)
    return stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_the_last_of_it_is_shown_and_the_line_ended(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(stream(), monkeypatch, range(1, 46), 45)
    assert "scenes: 100%" in text and "45/45" in text and text.endswith("\n")
    assert text.count("\n") == 1


def test_a_log_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), monkeypatch, range(1, 10_001), 10_000).count("\r") <= 3


def test_steps_of_any_size_and_a_resumed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "40/40" in shown(Terminal(), monkeypatch, [32, 40], 40)
