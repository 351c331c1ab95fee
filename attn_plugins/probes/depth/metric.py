"""Errors of predicted depth maps, per image and then averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.registry import METRICS
from torch import Tensor

__all__ = ["DepthErrors", "crop_box", "depth_errors"]

NAMES = ("rmse", "abs_rel", "sq_rel", "rmse_log", "log10", "silog", "d1", "d2", "d3")
EIGEN = (45, 471, 41, 601)
"""Top, bottom, left and right of Eigen's crop of NYUv2's 480x640."""


def crop_box(crop: str | None, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of an evaluation crop.

    Args:
        crop: ``eigen`` (NYUv2: rows 45 to 471, columns 41 to 601 of 480x640, scaled with the map), ``eigen_pixels``
            (those rows and columns of a map of any size, what the Monocular-Depth-Estimation-Toolbox takes of
            SUN RGB-D), ``garg`` (KITTI: fractions of the size) or None for all.

    Raises:
        ValueError: unknown crop, or a map of another shape than 3:4 for ``eigen``.
    """
    if crop is None:
        return 0, height, 0, width
    if crop == "eigen":
        return scaled_crop(EIGEN, height, width)
    if crop == "eigen_pixels":
        top, bottom, left, right = EIGEN
        return top, min(bottom, height), left, min(right, width)
    if crop == "garg":
        return (
            int(0.40810811 * height),
            int(0.99189189 * height),
            int(0.03594771 * width),
            int(0.96405229 * width),
        )
    raise ValueError(f"crop={crop!r}; use 'eigen', 'eigen_pixels', 'garg' or None")


def scaled_crop(crop: tuple[int, int, int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a crop of NYUv2's 480x640, in pixels of a map of its shape.

    Raises:
        ValueError: the map's shape is not 3:4, so that no part of it is that crop.
    """
    if height * 640 != width * 480:
        raise ValueError(
            f"the crop {crop} is of NYUv2's 480x640, and {height}x{width} has another shape: use crop=None, or images "
            "of NYUv2"
        )
    top, bottom, left, right = (round(edge * height / 480) for edge in crop)
    return top, bottom, left, right


def depth_errors(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """The nine usual errors over valid pixels.

    Args:
        prediction: ``[P]`` metres, clamped to the range.
        target: ``[P]`` metres.
    """
    prediction, target = prediction.double(), target.double()
    difference = prediction - target
    log = prediction.log() - target.log()
    ratio = torch.maximum(prediction / target, target / prediction)
    silog = (log.square().mean() - log.mean().square()).clamp(min=0).sqrt() * 100
    values = (
        difference.square().mean().sqrt(),
        (difference.abs() / target).mean(),
        (difference.square() / target).mean(),
        log.square().mean().sqrt(),
        (prediction.log10() - target.log10()).abs().mean(),
        silog,
        *((ratio < 1.25**power).double().mean() for power in (1, 2, 3)),
    )
    return {name: float(value) for name, value in zip(NAMES, values, strict=True)}


@METRICS.register_module()
class DepthErrors(BaseMetric):
    """RMSE, AbsRel, SqRel, RMSElog, log10, SILog (x100) and δ < 1.25, 1.25², 1.25³, each averaged over images.

    Predictions are clamped to the depth range; pixels count where the ground truth lies inside it and inside the
    crop. Images without such a pixel are left out and counted.

    Args:
        min_depth: metres.
        max_depth: metres.
        crop: ``eigen``, ``eigen_pixels``, ``garg`` or None; see ``crop_box``.
        cap: metres; ground truth and predictions beyond it are set to it first, as the toolbox does on SUN RGB-D,
            so that whatever is farther counts as that far. None changes nothing.
        kwargs: of mmengine's ``BaseMetric``.

    Attributes:
        images: {image's path: RMSE} of the last evaluation.
    """

    default_prefix = None

    def __init__(
        self, min_depth: float, max_depth: float, crop: str | None = None, cap: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        crop_box(crop, 480, 640)
        if cap is not None and not min_depth < cap < max_depth:
            raise ValueError(f"cap={cap} lies outside the depth range, {min_depth} to {max_depth} m")
        self.min_depth = min_depth
        self.max_depth = max_depth
        self.crop = crop
        self.cap = cap
        self.images: dict[str, float] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Add the errors of ``pred_depth_map`` ``[1, H, W]`` against ``gt_depth_map`` ``[1, H, W]``."""
        for sample in data_samples:
            target = sample["gt_depth_map"]["data"].squeeze(0)
            prediction = sample["pred_depth_map"]["data"].squeeze(0).to(target.device)
            if prediction.shape != target.shape:
                raise ValueError(
                    f"{sample.get('img_path')}: predicted {tuple(prediction.shape)}, true {tuple(target.shape)}"
                )
            top, bottom, left, right = crop_box(self.crop, *target.shape)
            prediction, target = prediction[top:bottom, left:right], target[top:bottom, left:right]
            if self.cap is not None:
                prediction, target = prediction.clamp(max=self.cap), target.clamp(max=self.cap)
            valid = (target > self.min_depth) & (target < self.max_depth)
            errors = None
            if valid.any():
                errors = depth_errors(prediction[valid].clamp(self.min_depth, self.max_depth), target[valid])
            self.results.append((sample.get("img_path"), errors))

    def compute_metrics(self, results: list[tuple[str, dict[str, float] | None]]) -> dict[str, float]:
        """Means over images.

        Raises:
            ValueError: no image had a valid pixel.
        """
        measured = [errors for _, errors in results if errors is not None]
        if not measured:
            raise ValueError(
                f"none of {len(results)} images has depth in ({self.min_depth}, {self.max_depth}) m inside "
                f"crop={self.crop!r}: check the ground truth's scale with `attn-plugins data check`"
            )
        if len(measured) < len(results):
            print_log(f"{len(results) - len(measured)} of {len(results)} images had no valid depth", logger="current")
        self.images = {path: errors["rmse"] for path, errors in results if errors is not None}
        return {name: sum(errors[name] for errors in measured) / len(measured) for name in NAMES}
