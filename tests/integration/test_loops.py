"""The scripts of integration/loops: they train, stop, go on as if they had not, and come back with their spec."""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_plugins.checkpoints import load_backbone_state, recorded_spec
from attn_plugins.training import read_run

pytest.importorskip("timm", reason="pip install timm")

FOLDER = Path(__file__).parents[2] / "integration/loops"
LOOPS = {
    "plain": ("timm", "model.pth", "entmax15"),
    "with_lightning": ("pytorch_lightning", "last.ckpt", "entmax_anneal:alpha=1.5,steps=10"),
    "with_trainer": ("accelerate", "final", "entmax15"),
    "with_accelerate": ("accelerate", "model.pth", "entmax15"),
}
"""Of each script: what it needs, what it leaves when it has ended, and the spec of that."""

IN_PROCESSES = {"with_torchrun", "with_submitit"}
"""Those that need several: tested in test_restarts.py."""

Start = Callable[..., str]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Start]:
    """Runs `python SCRIPT.py OUT STEPS` in this process, in which the libraries are imported once; what it prints."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def run(script: str, out: Path, steps: int) -> str:
        monkeypatch.setattr(sys, "argv", [script, str(out), str(steps)])
        capsys.readouterr()
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
        return capsys.readouterr().out

    before = dict(os.environ)
    with torch.random.fork_rng():
        yield run
    sys.modules.pop("yours", None)
    if "accelerate" in sys.modules:  # which keeps one state a process
        state: Any = importlib.import_module("accelerate.state")
        state.AcceleratorState._reset_state(reset_partial_state=True)
    for name in os.environ.keys() - before:  # Lightning's seed, Accelerate's device
        del os.environ[name]


def test_every_script_is_in_the_readme_and_short() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"yours"}
    assert scripts == {*LOOPS, "with_peft", *IN_PROCESSES}
    readme = (FOLDER / "README.md").read_text()
    for name in scripts:
        assert f"| `{name}.py` |" in readme and f" {name}.py out/" in readme
        assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", LOOPS)
def test_a_run_that_stops_goes_on_as_if_it_had_not(script: str, start: Start, tmp_path: Path) -> None:
    needed, left, spec = LOOPS[script]
    pytest.importorskip(needed, reason=f"pip install {needed}")
    told = start(script, tmp_path / "whole", 12)
    assert f"verified: every layer computes {spec}" in told

    assert "verified: every layer computes entmax_anneal" in start(script, tmp_path / "parts", 8)
    start(script, tmp_path / "parts", 12)
    (whole, info), (parts, _) = (load_backbone_state(tmp_path / name / left) for name in ("whole", "parts"))
    assert info.spec == spec and whole.keys() == parts.keys()
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name
    seen = read_run(tmp_path / "parts" / "attention.jsonl")
    assert [one.step for one in seen] == [0, 5, 10]
    assert [one.means()["alpha"] for one in seen] == pytest.approx([1, 1.25, 1.5])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_peft(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="pip install peft")
    told = start("with_peft", tmp_path, 12)
    assert "verified: every layer computes entmax15:scale=learnable" in told
    base, merged = (load_backbone_state(tmp_path / f"{name}.pth")[0] for name in ("base", "merged"))
    assert recorded_spec(tmp_path / "merged.pth")[0] == "entmax15:scale=learnable"
    learned = {name.rsplit(".", 2)[-2] for name in base if not torch.equal(base[name], merged[name])}
    assert learned == {"attn_plugins_normalizer", "qkv", "proj"}
