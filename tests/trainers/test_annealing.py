"""``entmax_anneal`` in trainers that nobody edited: every network follows the optimizer's steps, copies too."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.tiny_vit import TinyViT
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from attn_plugins import Anneal
from attn_plugins.trainers import annealing, patch_networks

SPEC = "entmax_anneal:steps=4"


@pytest.fixture(autouse=True)
def alone() -> None:
    """Each test is a trainer of its own."""
    annealing._leading.clear()


def step(optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()


def alphas(network: nn.Module) -> list[float]:
    return Anneal(network).alphas


def test_student_teacher_and_a_copy_follow(capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = TinyViT(), TinyViT()
    patch_networks(SPEC, student, teacher)
    average = copy.deepcopy(student)
    head = nn.Linear(2, 2)
    optimizer, other = torch.optim.SGD(student.parameters(), lr=0.1), torch.optim.SGD(head.parameters(), lr=0.1)
    for count in range(1, 7):
        other.step()
        step(optimizer, student)
        expected = [min(1 + count / 8, 1.5)] * 2
        assert alphas(student) == alphas(teacher) == alphas(average) == pytest.approx(expected)
    said = [line for line in capsys.readouterr().err.splitlines() if "entmax_anneal: after step" in line]
    assert [line.split("after ")[1] for line in said] == [
        "step 1, alpha is 1.125 to 1.125",
        "step 4, alpha is 1.5 to 1.5",
    ]


def test_a_run_that_was_loaded_goes_on() -> None:
    student, resumed = TinyViT(), TinyViT()
    patch_networks(SPEC, student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(2):
        step(optimizer, student)
    state = student.state_dict()
    annealing._leading.clear()
    patch_networks(SPEC, resumed)
    resumed.load_state_dict(state)
    step(torch.optim.SGD(resumed.parameters(), lr=0.1), resumed)
    assert alphas(resumed) == pytest.approx([1.375] * 2)


def test_a_step_that_only_makes_room_for_a_state_is_none() -> None:
    student = TinyViT()
    patch_networks(SPEC, student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1)
    get_optimizer_state_dict(student, optimizer)  # makes a step, of nothing
    assert alphas(student) == [1, 1] and optimizer.state
    optimizer.param_groups[0]["lr"] = 0.0  # of a warm-up
    step(optimizer, student)
    assert alphas(student) == pytest.approx([1.125] * 2)


def test_layers_are_told_their_place() -> None:
    student = TinyViT(depth=4)
    patch_networks("entmax_anneal:steps=4,order=deep_first", student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    step(optimizer, student)
    assert alphas(student) == [1, 1, 1, 1.5]
