"""FILE=SPEC."""

from __future__ import annotations

from pathlib import Path

import pytest

from attn_plugins.checkpoints import reference


@pytest.mark.parametrize(
    ("text", "path", "spec"),
    [
        ("a.pth", "a.pth", None),
        ("a.pth=entmax15", "a.pth", "entmax15"),
        ("a.pth=registers:num=4+entmax15", "a.pth", "entmax15+registers:num=4"),
        ("run=3/a.pth", "run=3/a.pth", None),
        ("run=3/a.pth=softmax", "run=3/a.pth", "softmax"),
        ("run=3/a.pth=entmax:alpha=1.3", "run=3/a.pth", "entmax:alpha=1.3"),
        ("b=softmax", "b=softmax", None),
        ("absent.pth=softmax", "absent.pth", "softmax"),
    ],
)
def test_where_a_path_ends(
    text: str, path: str, spec: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("a.pth", "run=3/a.pth", "b=softmax", "b"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
    assert reference(text) == (Path(path), spec)
    assert reference(Path(text)) == (Path(path), spec)


def test_what_is_neither_a_file_nor_a_spec() -> None:
    with pytest.raises(ValueError, match=r"is no file, and as FILE=SPEC .*entmax15"):
        reference("a.pth=entmax51")
