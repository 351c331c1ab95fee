"""Dense probes of single layers, with and without [CLS], over checkpoints: the paper's Figure 2b."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..results import IMAGES_FILE, find_results, interval, read_images, read_result
from .subjects import epoch_of, short_name

__all__ = ["LayerProbe", "collect_layers"]


@dataclass(frozen=True)
class LayerProbe:
    """One finished probe of one layer.

    Attributes:
        method: plugin spec of the backbone.
        checkpoint: the backbone's file.
        epoch: the epoch in its name (``checkpoint0040.pth`` is 40), None where there is none.
        layer: index of the block.
        cls: whether [CLS] was concatenated to every patch.
        miou: best validation mIoU, in percent.
        below, above: how far the 95 % interval over images reaches from it, in percent; NaN where the run kept nothing
            of single images. It is the last evaluation's, whose images are kept.
    """

    method: str
    checkpoint: str
    epoch: int | None
    layer: int
    cls: bool
    miou: float
    below: float = math.nan
    above: float = math.nan

    @property
    def point(self) -> tuple[str, str, int, bool]:
        """What it is a probe of."""
        return self.method, self.checkpoint, self.layer, self.cls

    @property
    def line(self) -> str:
        """What its line in the figure is called."""
        told = short_name(Path(self.checkpoint)) if self.epoch is None else f"epoch {self.epoch}"
        return told + (" + [CLS]" if self.cls else "")


def collect_layers(work_dirs: Sequence[Path]) -> list[LayerProbe]:
    """Every finished single-layer VOC probe below the given folders, from the ``probe.json`` that each leaves.

    A probe that has not come to its last iteration is left out, with a warning that names it.

    Raises:
        ValueError: a file is damaged, two probes are of the same layer of the same checkpoint, or there is no such
            probe.
    """
    found: dict[LayerProbe, Path] = {}
    for file in sorted(file.resolve() for file in find_results(work_dirs)):
        result = read_result(file)
        backbone, evaluations = result.backbone, result.evaluations_of("val")
        scores = [evaluation.metrics["mIoU"] for evaluation in evaluations if "mIoU" in evaluation.metrics]
        if result.probe != "voc2012" or not scores or len(backbone.get("layers", ())) != 1:
            continue
        done = evaluations[-1].iteration
        if done < result.max_iters:
            warnings.warn(f"{file} is left out: at iteration {done} of {result.max_iters}", stacklevel=2)
            continue
        checkpoint = str(backbone.get("checkpoint") or backbone.get("arch"))
        epoch = epoch_of(Path(checkpoint))
        cls = backbone.get("cls_token") == "concat"
        probe = LayerProbe(
            backbone["plugins"], checkpoint, epoch, backbone["layers"][0], cls, max(scores), *_reach(file)
        )
        other = next((file for known, file in found.items() if known.point == probe.point), None)
        if other is not None:
            raise ValueError(
                f"{other} and {file} are both of layer {probe.layer} of {checkpoint}: name the one to report"
            )
        found[probe] = file
    if not found:
        raise ValueError(f"no finished VOC probe of a single layer below {', '.join(map(str, work_dirs))}")
    return sorted(found, key=lambda probe: (probe.method, probe.epoch or 0, probe.checkpoint, probe.cls, probe.layer))


def _reach(result: Path) -> tuple[float, float]:
    """How far the interval of the last evaluation reaches below and above it; NaN where no images were kept.

    Raises:
        ValueError: what was kept is damaged.
    """
    file = result.parent / IMAGES_FILE
    if not file.is_file():
        return math.nan, math.nan
    value, low, high = interval(read_images(file)[1])
    return value - low, high - value
