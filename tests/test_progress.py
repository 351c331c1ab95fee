"""Progress in a log and on a terminal."""

import io

from attn_plugins.progress import printed_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, monkeypatch, total):
    monkeypatch.setattr("sys.stderr", stream)
    show = printed_progress("scenes")
    for done in range(1, total + 1):
        show(done, total)
    return stream.getvalue()


def test_a_log_gets_a_line_every_tenth_and_the_last(monkeypatch):
    lines = shown(io.StringIO(), monkeypatch, 45).splitlines()
    assert [line.split(",")[0] for line in lines] == [f"scenes: {n}/45" for n in (*range(4, 45, 4), 45)]


def test_a_terminal_gets_one_line_that_is_rewritten(monkeypatch):
    text = shown(Terminal(), monkeypatch, 45)
    assert text.count("\r") == 44 and text.count("\n") == 1 and text.endswith("\n")
