"""Loading that names what is wrong: unreadable images, and labels that do not fit the classes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.logging import print_log
from mmseg.registry import TRANSFORMS

__all__ = ["CheckLabels", "LoadProbeImage"]


@TRANSFORMS.register_module()
class LoadProbeImage(LoadImageFromFile):
    """mmcv's `LoadImageFromFile`, which names an unreadable image, and can skip and count it in training.

    Args:
        skip_unreadable: draw another image instead of stopping; refused by data sets in test mode.
        kwargs: of `LoadImageFromFile`.

    Raises:
        ValueError: the image is missing or damaged.
    """

    def __init__(self, skip_unreadable: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.skip_unreadable = skip_unreadable
        self.skipped: set[str] = set()

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        path = results["img_path"]
        try:
            return super().transform(results)
        except (OSError, AssertionError, cv2.error) as error:  # missing, undecodable, decoded to nothing
            if not self.skip_unreadable:
                raise ValueError(
                    f"cannot read image {path}: {error}. Replace it, or set skip_unreadable=True on LoadProbeImage"
                ) from error
        self.skipped.add(path)
        print_log(f"skipped unreadable image {path}; {len(self.skipped)} so far in this process", logger="current")
        return None


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """Stops at a segmentation map with a label that is no class, naming the file.

    Args:
        classes: number of classes.
        ignore: the label that means "none".

    Raises:
        ValueError: a label is neither below `classes` nor `ignore`.
    """

    def __init__(self, classes: int, ignore: int = 255) -> None:
        self.classes = classes
        self.ignore = ignore

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        labels = np.unique(results["gt_seg_map"])
        wrong = labels[(labels >= self.classes) & (labels != self.ignore)]
        if len(wrong):
            raise ValueError(
                f"{results['seg_map_path']} has labels {wrong.tolist()}; expected 0 to {self.classes - 1} and "
                f"{self.ignore}. Is it a colour-coded mask, or another data set's? See `attn-plugins data check`"
            )
        return results
