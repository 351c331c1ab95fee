"""What is missing or malformed in a real data root, said in seconds, before anyone waits for a GPU.

Every line of every split file is checked for its files and counted; pictures are decoded for a sample of each split.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attn_plugins.data.checks.depth import check_kitti, check_nyuv2, check_sunrgbd
from attn_plugins.data.checks.files import Problem
from attn_plugins.data.checks.imagenet import check_imagenet
from attn_plugins.data.checks.segmentation import check_ade20k, check_cityscapes, check_voc2012
from attn_plugins.data.convert import shipped_as, unfinished
from attn_plugins.data.layouts.common import MANIFEST

__all__ = ["CHECKS", "Problem", "check"]

CHECKS: dict[str, Callable[[Path, bool], list[Problem]]] = {
    "voc2012": check_voc2012,
    "ade20k": check_ade20k,
    "cityscapes": check_cityscapes,
    "nyuv2": check_nyuv2,
    "kitti": check_kitti,
    "sunrgbd": check_sunrgbd,
    "imagenet": check_imagenet,
}
"""{data set: check of a root, and whether it has to be the official release}."""


def check(dataset: str, root: str | Path, own: bool = False) -> list[Problem]:
    """Problems of a data root; an empty list when there are none. Whatever is in it, nothing is raised for it.

    Args:
        dataset: a name in ``attn_plugins.data.layouts.LAYOUTS``.
        root: the data root that a probe's config would be given.
        own: the data are not the official release: its counts and sizes are not asked for. Nor are they of scenes
            that ``attn-plugins data make`` wrote.

    Raises:
        ValueError: unknown data set.
    """
    if dataset not in CHECKS:
        raise ValueError(f"unknown data set {dataset!r}; known: {', '.join(CHECKS)}")
    root = Path(root)
    try:
        problems = CHECKS[dataset](root, not own and not (root / MANIFEST).is_file())
        return [*_not_converted(dataset, root, problems), *problems]
    except Exception as error:  # whatever a folder holds: it is told, with the file where the system names one
        path = Path(str(getattr(error, "filename", None) or root))
        remedy = "correct or remove it, then check again: the rest was not looked at"
        return [Problem("not-checked", path, f"stops the check: {type(error).__name__}: {error}", remedy)]


def _not_converted(dataset: str, root: Path, problems: list[Problem]) -> list[Problem]:
    """Whether a conversion was not brought to its end, or a root with problems is what a converter reads."""
    source = unfinished(root)
    if source is not None:
        found, remedy = "is half converted", f"go on with it: attn-plugins data convert {dataset} {source} {root}"
        return [Problem("half-converted", root, found, remedy)]
    shipped = shipped_as(dataset, root) if problems else None
    if shipped is None or shipped.as_is:
        return []
    found = f"is what the data set is shipped as ({shipped.reads}), not the layout that the probe reads"
    return [Problem("unconverted", root, found, f"convert it: attn-plugins data convert {dataset} {root} OUT")]
