"""A head, or a run to resume, never runs code: not by load_from, not by resume, not by a test, under no scheme."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint

from attn_plugins.checkpoints import CheckpointError
from attn_plugins.probes.run.runner import build_runner as here

from ..running import options


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


class ByAttributes:
    """Reaches for a function's globals, as mmengine's own allow-list (it has `getattr`) lets a file do."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (HistoryBuffer, "__init__")


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("way", ["load_from", "resume", "last_checkpoint", "test"])
def test_no_way_of_the_runner_runs_a_file(
    way: str, legacy: bool, backbone_file: Path, roots: dict[str, Path], tmp_path: Path
) -> None:
    trace, head = tmp_path / "trace", tmp_path / "evil.pth"
    contents = {"state_dict": {}, "meta": {"backbone": {}}, "message_hub": Evil(trace)}
    torch.save(contents, head, _use_new_zipfile_serialization=not legacy)
    settings = options("voc2012_linear", backbone_file, roots)
    resume = way == "last_checkpoint"
    if resume:
        (tmp_path / "run").mkdir()
        (tmp_path / "run/last_checkpoint").write_text(str(head))
    else:
        settings["load_from"] = head
    runner = here("voc2012", settings, tmp_path / "run", resume=resume or way == "resume")
    with pytest.raises(CheckpointError, match=r"evil\.pth .*refused, nothing in it was run: it asks for posix\.system"):
        (runner.test if way == "test" else runner.train)()
    assert not trace.exists()


def test_apis_beside_the_runner_and_other_schemes(tmp_path: Path) -> None:
    torch.save(Evil(tmp_path / "trace"), tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        load_checkpoint(torch.nn.Linear(1, 1), str(tmp_path / "evil.pth"))
    for scheme in CheckpointLoader._schemes:
        loader = CheckpointLoader._get_checkpoint_loader(f"{scheme}x")
        assert loader.__module__ == "attn_plugins.probes.run.reading", scheme
    with pytest.raises(CheckpointError, match="Download it"):
        CheckpointLoader.load_checkpoint("open-mmlab://resnet50_v1c")
    assert not (tmp_path / "trace").exists()


def test_an_address_is_downloaded_and_read_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, file: str, progress: bool) -> None:
        asked.append(url)
        torch.save({"x": 1} if "good" in url else Evil(tmp_path / "trace"), file)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert CheckpointLoader.load_checkpoint("https://host/good/head.pth") == {"x": 1}
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        CheckpointLoader.load_checkpoint("https://host/bad/head.pth")
    assert asked == ["https://host/good/head.pth", "https://host/bad/head.pth"] and not (tmp_path / "trace").exists()


def test_histories_survive_and_getattr_reaches_nothing_else(tmp_path: Path) -> None:
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save({"message_hub": {"log_scalars": {"loss": history}}}, tmp_path / "good.pth")
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "good.pth"))["message_hub"]["log_scalars"]["loss"]
    assert loaded.mean() == 2.0 and loaded.statistics("max") == 3.0
    torch.save(ByAttributes(), tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"asks for builtins\.getattr"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "bad.pth"))
