"""The benchmark of many shapes compares what it says, on random scores and on a model's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny_vit import TinyViT

from attn_plugins.bench.qkv import capture, read_layers, write_qkv
from attn_plugins.bench.shapes import Case, bench_shapes, cases, cpu_clock, shapes_table
from attn_plugins.cli import main


def test_the_grid_has_every_length_size_kind_and_dtype() -> None:
    names = [case.name for case in cases((37, 197))]
    parts = ("N 37", "N 37, bf16", "N 197, d 32", "masked", "packed", "causal", "sparsemax", "1.25", "entmax_alpha")
    for part in parts:
        assert any(part in name for name in names), part


def test_learned_alphas_are_not_all_those_that_need_no_powers() -> None:
    (case,) = (case for case in cases((197,)) if case.normalizer == "entmax_alpha")
    q, k, v = (t[:1, :, :40] for t in (case.query, case.key, case.value))
    found = case.ours(q, k, v)
    for head, alpha in enumerate((1.1, 1.26, 1.42, 1.58, 1.74, 1.9)):
        one = Case("x", q, k, v, f"entmax:alpha={alpha}").ours(q, k, v)
        torch.testing.assert_close(found[:, head], one[:, head], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["", "masked", "packed", "causal"])
def test_softmax_relates_the_same_queries_and_keys(kind: str) -> None:
    q, k, v = torch.randn(3, 1, 2, 30, 8).unbind(0)
    case = Case("x", q, k, v, "softmax", kind)
    torch.testing.assert_close(case.softmax(q, k, v), case.ours(q, k, v))


def test_a_kernel_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, 2, 30, 8).unbind(0)
    case = Case("x", q, k, v)
    right = Case.ours
    monkeypatch.setattr(Case, "ours", lambda *a, **k: right(*a, **k) * (1 if k.get("backend") else 1.1))
    with pytest.raises(RuntimeError, match="x: our kernel differs from the reference"):
        bench_shapes([case], 1)


def test_a_models_own_queries_are_what_its_attention_computes_with(tmp_path: Path) -> None:
    model, images = TinyViT(depth=3).eval(), torch.randn(2, 3, 16, 16)
    layers = capture(model, images, [0, 2])
    write_qkv(tmp_path / "qkv.safetensors", layers, arch="tiny")
    found = read_layers(tmp_path / "qkv.safetensors")
    assert list(found) == ["layer 0", "layer 2"]
    for name, (q, k, v, scale) in found.items():
        assert scale == layers[name][3]
        assert all(torch.equal(a, b) for a, b in zip((q, k, v), layers[name][:3], strict=True))
    with pytest.raises(ValueError, match=r"layers \[3\]: 3 attention calls were seen"):
        capture(model, images, [3])


def test_the_command_writes_ratios_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_qkv(tmp_path / "qkv.safetensors", capture(TinyViT().eval(), torch.randn(2, 3, 16, 16), [0]))
    threads = torch.get_num_threads()
    command = ["bench", "attention", "--qkv", str(tmp_path / "qkv.safetensors"), "--repeats", "1", "--threads", "1"]
    command += ["--cpu-time", "--specs", "entmax15", "sparsemax", "--json", str(tmp_path / "out.json")]
    try:
        assert main(command) == 0
    finally:
        torch.set_num_threads(threads)
    assert "layer 0, sparsemax" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["case"] for row in rows] == ["layer 0, entmax15", "layer 0, sparsemax"]
    assert all(0 < row["nonzero"] <= 1 and row["forward_backward_ratio"] > 0 for row in rows)


def test_another_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert main(["bench", "attention", "--qkv", str(tmp_path / "x.safetensors")]) == 2
    assert "no file of queries, keys and values" in capsys.readouterr().err


def test_processor_time_is_one_threads() -> None:
    q, k, v = torch.randn(3, 1, 2, 30, 8).unbind(0)
    result = bench_shapes([Case("x", q, k, v)], 1, cpu_clock)
    assert "processor time" in shapes_table(result)


@pytest.mark.slow
def test_another_instruction_set_is_another_process(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attention", "--grid", "--quick", "--isa", "avx2"]) == 0
    assert "N 37" in capfd.readouterr().out
