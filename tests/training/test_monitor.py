"""What Monitor tells is what the model computes, and the step that it looks at is the step it would have been."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_vit import TinyViT
from torch import Tensor, nn

import attn_plugins
from attn_plugins import Monitor
from attn_plugins.analysis.attention import statistics
from attn_plugins.training import Observation, read_run

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def model(spec: str = "entmax15", **options: int) -> nn.Module:
    torch.manual_seed(1)
    return attn_plugins.patch(TinyViT(**options), spec)


def train(network: nn.Module, monitor: Monitor | None = None, steps: int = 1) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        network(IMAGES).square().mean().backward()
        optimizer.step()
        if monitor is not None:
            monitor.step()


@pytest.mark.parametrize("spec", ["softmax", "entmax15", "sparsemax", "entmax_alpha:init=1.7"])
def test_whole_maps_give_the_numbers_of_the_analysis(spec: str) -> None:
    timm = pytest.importorskip("timm", reason="the analysis reads features of known ViTs: pip install timm")
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    network = attn_plugins.patch(timm.create_model("vit_tiny_patch16_224", **options), spec)
    with torch.no_grad():
        for block in network.blocks:
            block.attn.qkv.weight.mul_(20)  # so that there are zeros to count
    images = torch.randn(3, 3, 32, 32)
    monitor = Monitor(network, images=3, rows=17)
    network(images)
    seen = monitor.step()
    assert seen is not None
    network.eval()
    expected = statistics(network, images)
    for index, layer in enumerate(seen.layers):
        assert (layer.layer, layer.keys) == (f"blocks.{index}.attn", 17)
        for name in ("zero_share", "entropy", "support", "cls_mass"):
            torch.testing.assert_close(
                torch.tensor(getattr(layer, name)), getattr(expected, name)[index], atol=1e-5, rtol=1e-4
            )
        assert layer.alpha == pytest.approx(
            {"softmax": [1, 1], "entmax15": [1.5] * 2, "sparsemax": [2, 2]}.get(spec, [1.7, 1.7])
        )
    if spec != "softmax":
        assert seen.means()["zero_share"] > 0.05


def test_the_step_is_the_step_that_it_would_have_been() -> None:
    plain, watched = model(), model()
    train(plain, steps=3)
    random = torch.get_rng_state()
    monitor = Monitor(watched, every=2)
    train(watched, monitor, steps=3)
    assert monitor.last is not None and monitor.last.step == 2
    torch.testing.assert_close(watched.state_dict(), plain.state_dict(), atol=0, rtol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_every_so_many_steps_and_again_after_a_resume() -> None:
    network, seen = model(), list[int]()
    monitor = Monitor(network, lambda observation: seen.append(observation.step), every=3)
    train(network, monitor, steps=5)
    state = json.loads(json.dumps(monitor.state_dict()))
    resumed = Monitor(network, lambda observation: seen.append(observation.step), every=3)
    resumed.load_state_dict(state)
    train(network, resumed, steps=5)
    assert seen == [0, 3, 6, 9]


def test_the_first_call_of_a_step_is_told_and_validation_is_not() -> None:
    network = model()
    monitor = Monitor(network, images=9)
    with torch.no_grad():
        network.eval()(torch.randn(1, 3, 32, 32))  # 17 tokens
    network.train()(IMAGES)  # 5 tokens
    network(torch.randn(2, 3, 24, 24))  # 10 tokens
    seen = monitor.step()
    assert seen is not None and [layer.keys for layer in seen.layers] == [5, 5]
    frozen = Monitor(network.eval(), evaluation=True)
    network(IMAGES)
    assert frozen.step() is not None


def test_a_step_without_attention_is_told_once() -> None:
    network = model()
    monitor = Monitor(network, every=1)
    with pytest.warns(UserWarning, match="none of the 2 patched layers of TinyViT ran in training mode"):
        assert monitor.step() is None
    assert monitor.step() is None


def test_other_models_are_not_told_of() -> None:
    student, teacher = model(), model()
    monitor = Monitor(student)
    teacher(torch.randn(1, 3, 32, 32))
    copy.deepcopy(student)(torch.randn(1, 3, 32, 32))
    student(IMAGES)
    seen = monitor.step()
    assert seen is not None and {layer.keys for layer in seen.layers} == {5}


def test_layers_that_recompute_are_told_once() -> None:
    from torch.utils.checkpoint import checkpoint

    network, seen = model(), list[Observation]()
    monitor = Monitor(network, seen.append)
    tokens = torch.randn(2, 5, 16, requires_grad=True)
    checkpoint(network.get_submodule("blocks.0"), tokens, use_reentrant=False).sum().backward()
    monitor.step()
    assert [layer.layer for layer in seen[0].layers] == ["blocks.0.attn"]


def test_nothing_is_left_when_a_monitor_ends() -> None:
    from attn_plugins.attention import counting

    before = list(counting._WATCHERS)
    with Monitor(model()):
        assert len(counting._WATCHERS) == len(before) + 1
    assert before == counting._WATCHERS
    monitor = Monitor(model())
    del monitor
    assert before == counting._WATCHERS


@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", "method", "function"])
def test_what_is_compiled_is_seen_in_the_steps_that_are_looked_at(what: str) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    network = model()
    run: Callable[[Tensor], Tensor]
    if what == "method":
        network.compile(backend=backend, fullgraph=True)
        run, monitor = network, Monitor(network, every=2)
    elif what == "model":
        compiled: Any = torch.compile(network, backend=backend, fullgraph=True)
        run, monitor = compiled, Monitor(compiled, every=2)
    else:

        def forward(images: Tensor) -> Tensor:
            out: Tensor = network(images)
            return out

        run = torch.compile(forward, backend=backend, fullgraph=True)
        monitor = Monitor(network, every=2, compiled=True)
    for step in range(4):
        run(IMAGES).sum().backward()
        seen = monitor.step()
        assert (seen is not None) == (step % 2 == 0)
        assert bool(graphs) == (step > 0)
    assert len(graphs) == 1
    monitor.close()


def test_the_file_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    network = model()
    train(network, Monitor(network, path, every=1), steps=3)
    whole = read_run(path)
    assert [seen.step for seen in whole] == [0, 1, 2] and whole[0].spec == "entmax15"
    content = path.read_bytes()
    path.write_bytes(content[:-40])  # killed while the third line was written
    assert [seen.step for seen in read_run(path)] == [0, 1]
    resumed = Monitor(network, path, every=1)
    resumed.load_state_dict({"steps": 1})
    train(network, resumed, steps=2)
    again = read_run(path)
    assert [seen.step for seen in again] == [0, 1, 2]
    assert again[1].layers != whole[1].layers  # of a step that was made twice, the last


@pytest.mark.parametrize("content", ["", "{}\n{}\n", "no JSON\n{}\n", '{"step": 0, "spec": "x", "layers": [1]}\n\n'])
def test_files_that_hold_no_run_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.jsonl"):
        read_run(path)


def test_tensorboard_reads_what_it_was_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    network = model("entmax_alpha")
    with Monitor(network, f"tensorboard:{tmp_path}", every=2) as monitor:
        train(network, monitor, steps=3)
        assert monitor.last is not None
        entropy = monitor.last.layers[1].entropy
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("attention/zero_share")] == [0, 2]
    assert events.Scalars("attention_entropy/blocks.1.attn")[-1].value == pytest.approx(sum(entropy) / len(entropy))
    assert events.Scalars("attention/alpha")[0].value == pytest.approx(1.5)


def test_a_run_of_wandb_logs_without_touching_its_counter() -> None:
    class Run:
        def __init__(self) -> None:
            self.config: dict[str, object] = {}
            self.logged: list[dict[str, float]] = []

        def log(self, values: dict[str, float]) -> None:
            self.logged.append(values)

    network, run = model(), Run()
    train(network, Monitor(network, run))
    (values,) = run.logged
    assert values["attention/step"] == 0 and values["attention/alpha"] == 1.5
    assert "attention_zero_share/blocks.0.attn" in values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every is 1 or more, not 0"),
        ({"rows": 0}, "rows is 1 or more"),
        ({"sinks": "run.csv"}, r"'run\.csv' is no sink"),
        ({"sinks": "tensorboard:"}, "is no sink"),
        ({"sinks": "missing/folder/run.jsonl"}, "is no folder"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Monitor(model(), **arguments)


def test_a_model_that_is_not_patched_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"patch\(model, 'softmax'\)"):
        Monitor(TinyViT())
