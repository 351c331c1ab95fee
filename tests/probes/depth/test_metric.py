"""Depth errors against the formulas in plain numpy, with crops, clamping and per-image averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attn_plugins.probes.depth.metric import DepthErrors, crop_box


def by_hand(prediction: np.ndarray, target: np.ndarray, low: float, high: float) -> dict[str, float]:
    """As the depth toolbox that DINOv2 used computes them."""
    p, t = np.clip(prediction, low, high), target
    ratio = np.maximum(t / p, p / t)
    error = np.log(p) - np.log(t)
    return {
        "rmse": np.sqrt(((t - p) ** 2).mean()),
        "abs_rel": (np.abs(t - p) / t).mean(),
        "sq_rel": (((t - p) ** 2) / t).mean(),
        "rmse_log": np.sqrt((error**2).mean()),
        "log10": np.abs(np.log10(t) - np.log10(p)).mean(),
        "silog": np.sqrt((error**2).mean() - error.mean() ** 2) * 100,
        "d1": (ratio < 1.25).mean(),
        "d2": (ratio < 1.25**2).mean(),
        "d3": (ratio < 1.25**3).mean(),
    }


@pytest.mark.parametrize(
    ("crop", "size", "high"), [("eigen", (480, 640), 10.0), ("garg", (352, 1216), 80.0), (None, (53, 73), 10.0)]
)
def test_errors_are_the_formulas(crop: str | None, size: tuple[int, int], high: float) -> None:
    rng = np.random.default_rng(0)
    metric, expected = DepthErrors(0.001, high, crop), []
    for _ in range(3):
        target = rng.uniform(0, high * 1.2, size)
        target[rng.random(size) < 0.3] = 0
        prediction = target * rng.uniform(0.5, 2, size) - 0.1
        data = {
            "gt_depth_map": {"data": torch.tensor(target)[None]},
            "pred_depth_map": {"data": torch.tensor(prediction)[None]},
        }
        metric.process(None, [data])
        inside = np.zeros(size, bool)
        if crop == "eigen":
            inside[45:471, 41:601] = True
        elif crop == "garg":
            h, w = size
            inside[int(0.40810811 * h) : int(0.99189189 * h), int(0.03594771 * w) : int(0.96405229 * w)] = True
        else:
            inside[:] = True
        valid = inside & (target > 0.001) & (target < high)
        expected.append(by_hand(prediction[valid], target[valid], 0.001, high))
    measured = metric.evaluate(3)
    for name in expected[0]:
        assert measured[name] == pytest.approx(np.mean([e[name] for e in expected]), rel=1e-9), name


def test_images_without_depth_are_left_out_and_all_of_them_is_an_error() -> None:
    def data(depth: float) -> dict[str, dict[str, torch.Tensor]]:
        return {
            "gt_depth_map": {"data": torch.full((1, 4, 5), depth)},
            "pred_depth_map": {"data": torch.full((1, 4, 5), 3.0)},
        }

    metric = DepthErrors(0.001, 10.0)
    metric.process(None, [data(2.0), data(0.0)])
    assert metric.evaluate(2)["rmse"] == pytest.approx(1.0)
    metric.process(None, [data(0.0)])
    with pytest.raises(ValueError, match="none of 1 images has depth"):
        metric.evaluate(1)


def test_maps_of_other_sizes_are_refused() -> None:
    data = {"gt_depth_map": {"data": torch.ones(1, 4, 5)}, "pred_depth_map": {"data": torch.ones(1, 5, 4)}}
    with pytest.raises(ValueError, match=r"predicted \(5, 4\), true \(4, 5\)"):
        DepthErrors(0.001, 10.0).process(None, [data])
    with pytest.raises(ValueError, match="crop='nyu'"):
        crop_box("nyu", 4, 5)


@pytest.mark.parametrize("scale", [1, 2, 0.5, 0.2])
def test_the_eigen_crop_follows_the_size_of_the_map(scale: float) -> None:
    height, width = round(480 * scale), round(640 * scale)
    top, bottom, left, right = crop_box("eigen", height, width)
    assert (top, bottom, left, right) == tuple(round(edge * scale) for edge in (45, 471, 41, 601))
    assert 0 < top < bottom < height and 0 < left < right < width


@pytest.mark.parametrize("size", [(640, 480), (530, 730), (352, 1216), (481, 640)])
def test_the_eigen_crop_of_another_shape_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"480x640, and {size[0]}x{size[1]} has another shape: use crop=None"):
        crop_box("eigen", *size)
    data = {"gt_depth_map": {"data": torch.ones(1, *size)}, "pred_depth_map": {"data": torch.ones(1, *size)}}
    with pytest.raises(ValueError, match="has another shape"):
        DepthErrors(0.001, 10.0, "eigen").process(None, [data])


@pytest.mark.parametrize("size", [(480, 640), (530, 730), (427, 561), (441, 591)])
def test_sun_rgbd_as_the_toolbox_measures_it(size: tuple[int, int]) -> None:
    """Its depth/datasets/sunrgbd.py: both capped at 8 m, then rows 45:471 and columns 41:601 whatever the size."""
    rng = np.random.default_rng(0)
    target, prediction = rng.uniform(0.5, 20, size), rng.uniform(0.5, 10, size)
    target[rng.random(size) < 0.3] = 0
    metric = DepthErrors(0.001, 10.0, "eigen_pixels", cap=8.0)
    metric.process(
        None,
        [
            {
                "gt_depth_map": {"data": torch.tensor(target)[None]},
                "pred_depth_map": {"data": torch.tensor(prediction)[None]},
            }
        ],
    )
    true, told = np.minimum(target, 8)[45:471, 41:601], np.minimum(prediction, 8)[45:471, 41:601]
    wanted = by_hand(told[true > 0.001], true[true > 0.001], 0.001, 10.0)
    measured = metric.evaluate(1)
    for name in wanted:
        assert measured[name] == pytest.approx(wanted[name], rel=1e-9), name


@pytest.mark.parametrize("cap", [0.0, 10.0, 80.0, float("nan")])
def test_a_cap_outside_the_range_is_refused(cap: float) -> None:
    with pytest.raises(ValueError, match=r"cap=.* lies outside the depth range, 0\.001 to 10\.0 m"):
        DepthErrors(0.001, 10.0, cap=cap)
