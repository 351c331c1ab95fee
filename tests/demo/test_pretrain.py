"""DINO pre-training in lock step: reproducible, resumable, the same start for every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("lightly", reason="the demo's pre-training is lightly's: pip install 'attn_plugins[demo]'")

from attn_plugins.data.scenes import render
from attn_plugins.demo.pretrain import Method, Recipe, pretrain

TINY = Recipe(steps=4, batch_size=4, embed_dim=32, depth=2, num_heads=2, global_size=32, local_size=16)
SPECS = ("softmax", "entmax15")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for index in range(6):
        Image.fromarray(render(0, index, (48, 64)).image).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


class Killed(Exception):
    pass


def kill_at(step: int) -> Callable[[int, list[Method]], None]:
    def progress(done: int, methods: list[Method]) -> None:
        if done == step:
            raise Killed

    return progress


def nothing(done: int, methods: list[Method]) -> None:
    pass


def weights(methods: list[Method]) -> list[dict[str, Tensor]]:
    return [method.teacher.state_dict() for method in methods]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(files: list[Path], tmp_path: Path) -> None:
    whole = pretrain(files, SPECS, TINY, tmp_path / "whole.pth", nothing)
    with pytest.raises(Killed):
        pretrain(files, SPECS, TINY, tmp_path / "killed.pth", kill_at(2), save_every=2)
    seen = []
    resumed = pretrain(files, SPECS, TINY, tmp_path / "killed.pth", lambda done, methods: seen.append(done))
    assert seen == [2, 3, 4]
    stopped = pretrain(files, SPECS, TINY, tmp_path / "stopped.pth", nothing, until=3)
    assert [len(method.losses) for method in stopped] == [3, 3]
    stopped = pretrain(files, SPECS, TINY, tmp_path / "stopped.pth", nothing)
    for a, b in zip(weights(whole), weights(stopped), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        torch.testing.assert_close(a, b)
    assert [len(method.losses) for method in resumed] == [4, 4]


def test_the_rate_rises_for_a_tenth_of_the_steps_and_then_falls() -> None:
    """As DINO's ``cosine_scheduler``: to the peak along a line, from there down a cosine to a thousandth of it."""
    recipe = replace(TINY, steps=100)
    method, rates = Method("softmax", recipe), []
    for step in range(recipe.steps):
        method._schedule(step)
        rates.append(method.optimizer.param_groups[0]["lr"] / recipe.learning_rate)
    rising, falling = np.array(rates[:10]), np.array(rates[10:])
    np.testing.assert_allclose(rising, np.linspace(0.1, 1, 10))
    np.testing.assert_allclose(falling, 1e-3 + 0.5 * (1 - 1e-3) * (1 + np.cos(np.pi * np.arange(90) / 90)), atol=1e-3)


def test_methods_start_from_the_same_weights_and_train_apart(files: list[Path], tmp_path: Path) -> None:
    starts = [Method(spec, TINY) for spec in SPECS]
    alike = [dict(start.student.named_parameters()) for start in starts]  # not the records, which tell them apart
    torch.testing.assert_close(*alike, atol=0, rtol=0)
    softmax, entmax = pretrain(files, SPECS, TINY, tmp_path / "state.pth", nothing)
    moved = [
        (a - b).abs().max()
        for a, b in zip(softmax.student.parameters(), starts[0].student.parameters(), strict=True)
        if a.requires_grad
    ]
    assert min(moved) > 0, "every parameter trains"
    apart = [
        (a - b).abs().max() for a, b in zip(softmax.student.parameters(), entmax.student.parameters(), strict=True)
    ]
    assert max(apart) > 0


def test_a_state_of_another_recipe_is_refused(files: list[Path], tmp_path: Path) -> None:
    state = tmp_path / "state.pth"
    pretrain(files, SPECS, TINY, state, nothing)
    before = state.read_bytes()
    with pytest.raises(ValueError, match="choose another --out"):
        pretrain(files, SPECS, replace(TINY, seed=1), state, nothing)
    with pytest.raises(ValueError, match="choose another --out"):
        pretrain(files, ("softmax",), TINY, state, nothing)
    assert state.read_bytes() == before


def test_another_seed_gives_another_run(files: list[Path], tmp_path: Path) -> None:
    a = pretrain(files, ("softmax",), TINY, tmp_path / "a.pth", nothing)
    b = pretrain(files, ("softmax",), replace(TINY, seed=1), tmp_path / "b.pth", nothing)
    assert a[0].losses != b[0].losses
