"""The benchmark measures what it says, checks its peers, and reports it whole."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from attn_plugins.bench.attention import BASELINE, bench_attention, check, peak_memory, peers
from attn_plugins.bench.timing import Timing, in_turns
from attn_plugins.cli import bench as command


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["bench", *arguments])
    out: int = args.func(args)
    return out


def test_functions_take_turns_after_the_warm_up() -> None:
    calls: list[str] = []
    clock = iter(range(100))
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = in_turns(functions, repeats=3, warmup=1, clock=lambda f: (f(), float(next(clock)))[1])
    assert "".join(calls) == "ab" + "ababab"
    assert timings["a"].samples == (0.0, 2.0, 4.0) and timings["b"].median == 3.0
    with pytest.raises(ValueError, match="repeats is 1 or more, got 0"):
        in_turns(functions, repeats=0)


def test_statistics() -> None:
    timing = Timing((4.0, 1.0, 2.0, 3.0, 100.0))
    assert timing.median == 3.0 and timing.best == 1.0 and timing.spread == 2.0
    assert Timing((5.0,)).spread == 0.0


def test_peers_are_compared_before_they_are_timed() -> None:
    inputs = tuple(torch.randn(1, 1, 9, 4, requires_grad=True) for _ in range(3))
    check(peers(), inputs, torch.ones(1, 1, 9, 4))
    wrong = {"entmax15 of twice the scores": lambda q, k, v: peers()["entmax15"](2 * q, k, v)}
    with pytest.raises(RuntimeError, match="entmax15 of twice the scores differs from entmax15"):
        check(wrong, inputs, torch.ones(1, 1, 9, 4))


@pytest.mark.slow
def test_memory_is_what_a_call_takes() -> None:
    shape = (1, 2, 1000, 16)
    scores = 2 * 1000 * 1000 * 4 / 2**20  # one matrix of them, in MiB
    assert peak_memory("softmax, composed", shape) > 2 * scores
    assert 0 < peak_memory("entmax15", shape) < scores


def test_memory_is_printed_beside_softmax(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attn_plugins.bench.attention.peak_memory", lambda name, *_: 3.0 if name == "entmax15" else 4.0)
    assert run("attention", "--quick", "--memory") == 0
    assert "entmax15: 3.0 MiB beyond its inputs, x 0.75\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--memory counts what one shape takes on the CPU: leave out --grid"):
        run("attention", "--grid", "--memory")


def test_memory_is_refused_where_nothing_counts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("attn_plugins.bench.attention.HIGHEST", tmp_path / "clear_refs")
    with pytest.raises(ValueError, match=r"memory is counted by Linux, in .*clear_refs"):
        bench_attention((1, 1, 4, 4), memory=True)


def test_attention_command_prints_ratios_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "result.json"
    assert run("attention", "--quick", "--json", str(path)) == 0
    result = json.loads(path.read_text())
    assert [*path.parent.iterdir()] == [path]
    assert result["peers"][BASELINE]["ratio"] == 1.0 and result["settings"]["tokens"] == 50
    assert {"entmax15", "sparsemax", "entmax.entmax15, composed"} <= set(result["peers"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in result["peers"])
    for peer in result["peers"].values():
        assert peer["median_ms"] >= peer["best_ms"] > 0 and peer["repeats"] == 2


def test_specs_choose_what_is_timed() -> None:
    result = bench_attention((1, 1, 5, 4), ["entmax:alpha=1.7"], repeats=1)
    assert "entmax:alpha=1.7" in result["peers"] and "sparsemax" not in result["peers"]


def test_step_command_times_both_models(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="times a timm model; pip install timm")
    path = tmp_path / "step.json"
    assert run("step", "--arch", "test_vit", "--quick", "--json", str(path)) == 0
    assert {*json.loads(path.read_text())["peers"]} == {"softmax", "entmax15"}


def test_monitor_command_tells_the_share_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm", reason="times a timm model; pip install timm")
    path = tmp_path / "monitor.json"
    assert run("monitor", "--arch", "test_vit", "--quick", "--json", str(path)) == 0
    result = json.loads(path.read_text())
    assert {*result["peers"]} == {"entmax15", "entmax15, looked at"}
    step = result["peers"]["entmax15"]["median_ms"]
    assert result["share"] == pytest.approx(result["looking_ms"] / 100 / step)
    assert "% of the run" in capsys.readouterr().out
