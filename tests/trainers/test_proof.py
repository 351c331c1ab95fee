"""The log says which layers have answered attention, and how often."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.tiny_vit import TinyViT
from torch import Tensor, nn

from attn_plugins.trainers import patch_networks, proof


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    proof._waiting.clear()
    yield lambda: capsys.readouterr().err.splitlines()
    proof._waiting.clear()


def step(*networks: nn.Module, calls: int = 1) -> None:
    parameters = [parameter for network in networks for parameter in network.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(calls):
        for network in networks:
            network(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()


def test_once_after_the_first_step(log: Callable[[], list[str]]) -> None:
    student, teacher = TinyViT(), TinyViT()
    patch_networks("entmax15", student, teacher)
    assert log() == []
    step(student, calls=3)
    says = "attn_plugins: after the first training step, TinyViT with entmax15: "
    assert log() == [
        f"{says}2 of 2 layers have answered attention calls, 3 each",
        f"{says}0 of 2 layers have answered attention calls; "
        "none outside of compiled code: blocks.0.attn, blocks.1.attn",
    ]
    step(student)
    assert log() == []


def test_layers_that_answer_nothing_are_named_and_the_rest_counted(log: Callable[[], list[str]]) -> None:
    network = TinyViT(depth=3)
    patch_networks("entmax15", network)
    network.blocks[0](torch.randn(1, 5, 16))

    def forward(pictures: Tensor) -> Tensor:
        tokens: Tensor = network.blocks[1](network.blocks[0](torch.randn(1, 5, 16)))
        return tokens

    network.forward = forward  # type: ignore[method-assign]
    step(network)
    (line,) = log()
    assert line.endswith(
        "2 of 3 layers have answered attention calls, 1 to 2 each; none outside of compiled code: blocks.2.attn"
    )


def test_softmax_is_not_told(log: Callable[[], list[str]]) -> None:
    network = TinyViT()
    patch_networks("softmax", network)
    step(network)
    assert log() == []


@pytest.mark.slow
def test_an_evaluation_is_told_at_the_end(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from helpers.tiny_vit import TinyViT\n"
        "from attn_plugins.trainers import patch_networks\n"
        "network = TinyViT()\n"
        "patch_networks('entmax15', network)\n"
        "network.eval()(torch.randn(1, 3, 16, 16))\n"
    )
    tests = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tests, check=True)
    assert "at the end, TinyViT with entmax15: 2 of 2 layers have answered attention calls, 1 each" in done.stderr
