"""Depth losses equal DINOv2's, and a target without depth costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from mmengine.logging import MessageHub
from torch import Tensor, nn

from attn_plugins.probes.depth.losses import LogGradientLoss, SigLoss

from .. import upstream
from ..conftest import checkout


def maps(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(batch, 1, 24, 30, generator=generator) * 9 + 0.5
    target = torch.rand(batch, 1, 24, 30, generator=generator) * 12
    target[target < 2] = 0
    return prediction, target


@pytest.fixture
def at_iteration(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    hub = MessageHub.get_current_instance()
    before = hub.get_info("iter", 0)
    yield lambda iteration: hub.update_info("iter", iteration)
    hub.update_info("iter", before)


@pytest.mark.parametrize("max_depth", [None, 10.0])
def test_sigloss_is_dinov2s_through_its_warm_up(
    max_depth: float | None, at_iteration: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = upstream.losses(checkout("DINOV2_ROOT"), monkeypatch)[0](warm_up=True, warm_iter=3, max_depth=max_depth)
    ours = SigLoss(warm_iter=3, max_depth=max_depth)
    prediction, target = maps()
    for iteration in range(6):
        at_iteration(iteration)
        torch.testing.assert_close(ours(prediction, target), theirs(prediction, target), atol=1e-5, rtol=1e-5)


def test_sigloss_of_a_big_batch_is_the_mean_over_gpus_of_two(
    at_iteration: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = upstream.losses(checkout("DINOV2_ROOT"), monkeypatch)[0]()
    at_iteration(100)
    prediction, target = maps(6)
    per_gpu = [theirs(prediction[i : i + 2], target[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(SigLoss()(prediction, target), torch.stack(per_gpu).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_depth", [None, 10.0])
def test_gradient_loss_is_dinov2s_on_an_image(max_depth: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = upstream.losses(checkout("DINOV2_ROOT"), monkeypatch)[1](loss_weight=0.5, max_depth=max_depth)
    ours = LogGradientLoss(max_depth=max_depth)
    prediction, target = maps()
    each = torch.stack([theirs(prediction[i, 0], target[i, 0]) for i in range(2)])
    torch.testing.assert_close(ours(prediction, target), each.mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [2, 5])
def test_gradient_loss_over_the_batch_as_dinov2_runs_it(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = upstream.losses(checkout("DINOV2_ROOT"), monkeypatch)[1](loss_weight=0.5)
    prediction, target = maps(batch)
    value = LogGradientLoss(axes="upstream")(prediction, target)
    torch.testing.assert_close(value, theirs(prediction, target), atol=1e-5, rtol=1e-5)
    assert (value == 0) == (batch == 2)


@pytest.mark.parametrize("loss", [SigLoss(), LogGradientLoss(), LogGradientLoss(axes="upstream")])
def test_an_image_without_depth_costs_nothing(loss: nn.Module, at_iteration: Callable[[int], None]) -> None:
    at_iteration(100)
    prediction, target = maps(4)
    prediction.requires_grad_()
    value = loss(prediction, torch.zeros_like(target))
    value.backward()
    assert prediction.grad is not None
    assert value == 0 and torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_a_perfect_prediction_has_a_finite_gradient(at_iteration: Callable[[int], None]) -> None:
    at_iteration(100)
    _, target = maps()
    prediction = target.clone().requires_grad_()
    SigLoss()(prediction, target).backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all()


def test_unknown_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="axes='batch'"):
        LogGradientLoss(axes="batch")
