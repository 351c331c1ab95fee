"""What is missing or malformed in a real data root, said in seconds, before anyone waits for a GPU.

Every line of every split file is checked for its files; pictures are decoded for a sample of each split.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attn_plugins.data.checks.depth import check_kitti, check_nyuv2, check_sunrgbd
from attn_plugins.data.checks.files import Problem
from attn_plugins.data.checks.imagenet import check_imagenet
from attn_plugins.data.checks.segmentation import check_ade20k, check_cityscapes, check_voc2012

__all__ = ["CHECKS", "Problem", "check"]

CHECKS: dict[str, Callable[[Path], list[Problem]]] = {
    "voc2012": check_voc2012,
    "ade20k": check_ade20k,
    "cityscapes": check_cityscapes,
    "nyuv2": check_nyuv2,
    "kitti": check_kitti,
    "sunrgbd": check_sunrgbd,
    "imagenet": check_imagenet,
}


def check(dataset: str, root: str | Path) -> list[Problem]:
    """Problems of a data root; an empty list when there are none.

    Args:
        dataset: a name in `attn_plugins.data.layouts.LAYOUTS`.
        root: the data root that a probe's config would be given.

    Raises:
        ValueError: unknown data set.
    """
    if dataset not in CHECKS:
        raise ValueError(f"unknown data set {dataset!r}; known: {', '.join(CHECKS)}")
    return CHECKS[dataset](Path(root))
