"""The GPU benchmark: what of it can be checked without a GPU, and that it says so when there is none."""

import json
from pathlib import Path

import pytest
import torch

from attn_plugins.bench import cuda_peers, cuda_steps
from attn_plugins.bench.attention import composed
from attn_plugins.bench.roofline import Ceilings, Shape, floor_ms, measure_ceilings, minimal_work
from attn_plugins.cli import main

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_no_gpu
def test_without_a_gpu_the_command_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attention", "--device", "cuda"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


@needs_gpu
def test_runs_on_a_gpu_and_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attention", "--device", "cuda", "--quick", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    peers = found["shapes"]["N 50"]["peers"]
    assert peers[cuda_peers.OURS]["both_ms"] > 0 and found["machine"]["name"]
    assert cuda_peers.OURS in capsys.readouterr().out


def test_minimal_work_counts_tensors_and_products() -> None:
    shape = Shape("one head", 1, 1, (100,), 64)
    forward, backward = (minimal_work(shape, 2, b) for b in (False, True))
    assert forward.bytes == 4 * 100 * 64 * 2 + 100 * 4
    assert backward.bytes == 7 * 100 * 64 * 2 + 100 * 4
    assert forward.operations == 2 * 2 * 100 * 100 * 64 and backward.operations * 2 == forward.operations * 5


def test_packed_work_has_no_scores_across_sequences() -> None:
    packed = minimal_work(Shape("", 1, 2, (30, 30, 10), 64), 2, False)
    apart = [minimal_work(Shape("", 1, 2, (n,), 64), 2, False) for n in (30, 30, 10)]
    assert packed.operations == sum(work.operations for work in apart)
    assert packed.bytes == sum(work.bytes for work in apart)


def test_the_floor_is_the_slower_of_bytes_and_operations() -> None:
    work = minimal_work(Shape("", 1, 1, (1000,), 64), 2, False)
    slow_memory, slow_units = Ceilings(1e6, 1e15), Ceilings(1e15, 1e6)
    assert floor_ms(work, slow_memory) == pytest.approx(1e3 * work.bytes / 1e6)
    assert floor_ms(work, slow_units) == pytest.approx(1e3 * work.operations / 1e6)


def test_ceilings_are_measured() -> None:
    ceilings = measure_ceilings(torch.device("cpu"), torch.float32, size=64)
    assert ceilings.bytes_per_s > 0 and ceilings.operations_per_s > 0


def test_peers_run_each_sequence_of_a_packed_batch() -> None:
    lengths = (9, 9, 4)
    q, k, v = (torch.randn(1, 2, sum(lengths), 8) for _ in range(3))
    softmax = cuda_peers.peers(Shape("packed", 1, 2, lengths, 8))["softmax as DINO writes it"]
    parts = [composed(torch.softmax)(*x) for x in zip(*(t.split(lengths, 2) for t in (q, k, v)), strict=True)]
    torch.testing.assert_close(softmax(q, k, v), torch.cat(parts, 2))


def test_a_training_step_changes_the_model() -> None:
    linear = torch.nn.Linear(12, 4)
    model = torch.nn.Sequential(torch.nn.Flatten(), linear)
    before = linear.weight.detach().clone()
    cuda_steps.multi_crop_step(model, [torch.randn(2, 3, 2, 2), torch.randn(4, 3, 2, 2)])()
    assert not torch.equal(linear.weight, before)


def test_a_checkout_that_is_not_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DINO_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="vision_transformer"):
        cuda_steps.official_dino()


def test_models_that_were_not_there_are_named() -> None:
    text = cuda_steps.steps_table(
        {"x": {"not measured": "no checkout"}, "y": {"softmax_ms": 2.0, "entmax15_ms": 3.0, "ratio": 1.5}}
    )
    assert "x: not measured, no checkout" in text and "x 1.50" in text
