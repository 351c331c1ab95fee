"""The generated scenes can be learned: a probe on pixels and positions beats chance, unless its labels are shuffled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.model import BaseModule
from mmseg.registry import MODELS, TRANSFORMS
from PIL import Image
from torch import Tensor

from attn_plugins.data.layouts import LAYOUTS
from attn_plugins.probes.run.runner import build_runner as here

from .running import options

pytestmark = pytest.mark.nightly  # in the ordinary tier: tests/data/test_scenes.py, without a probe


@MODELS.register_module()
class PixelsAndPosition(BaseModule):
    """A backbone without weights: colours, their products, and where on the picture."""

    def __init__(self, **ignored: Any) -> None:
        super().__init__()
        self.channels, self.tuned = [11], False
        self.identity: dict[str, Any] = {
            "sha256": None,
            "plugins": "none",
            "layers": [],
            "checkpoint": None,
            "arch": "pixels",
        }
        self.identity |= {"norm": True, "cls_token": False}

    def told(self) -> dict[str, Any]:
        return self.identity

    def forward(self, images: Tensor) -> tuple[Tensor]:
        colors = torch.nn.functional.avg_pool2d(images, 4)
        r, g, b = colors.unbind(1)
        products = torch.stack([r * r, g * g, b * b, r * g, g * b, b * r], 1)
        h, w = colors.shape[-2:]
        y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        place = torch.stack([y, x]).expand(len(images), 2, h, w)
        return (torch.cat([colors, products, place], 1),)


@TRANSFORMS.register_module()
class ShuffledLabels(BaseTransform):
    """Stands behind LoadAnnotations: the mask's pixels in random order, so that only class frequencies are left."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        mask = results["gt_seg_map"]
        results["gt_seg_map"] = np.random.permutation(mask.ravel()).reshape(mask.shape)
        return results


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LAYOUTS["ade20k"](tmp_path_factory.mktemp("ade20k"), 60, 20, seed=0, size=(64, 96))


def metrics(ade20k: Path, work_dir: Path, shuffled: bool) -> dict[str, float]:
    """Validation metrics of a short run on ADE20K's layout, where floor, walls and sky are classes, too."""
    settings = options("ade20k_linear", Path("none"), {"ade20k": ade20k}, iterations=60, total=8)
    more = {
        "model.backbone.type": "PixelsAndPosition",
        "optim_wrapper.optimizer.lr": 0.03,
        "param_scheduler.0.end": 5,
        "param_scheduler.1.end": 60,
        "train_dataloader.dataset.pipeline.4.ratio_range": "(0.9,1.1)",
    }
    runner = here("ade20k", settings | more, work_dir, change=_shuffle if shuffled else None)
    runner.train()
    out: dict[str, float] = json.loads((work_dir / "probe.json").read_text())["evaluations"][-1]["metrics"]
    return out


def _shuffle(config: Any) -> None:
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline.insert([step.type for step in pipeline].index("LoadAnnotations") + 1, {"type": "ShuffledLabels"})


def chance(ade20k: Path) -> float:
    """Accuracy of the most frequent class, in percent."""
    masks = [np.asarray(Image.open(path)) for path in (ade20k / "annotations/validation").glob("*.png")]
    counts = np.bincount(np.concatenate([mask[mask > 0] for mask in masks]))
    out: float = 100 * counts.max() / counts.sum()
    return out


def test_true_labels_are_learned_and_shuffled_ones_are_not(ade20k: Path, tmp_path: Path) -> None:
    true, shuffled = metrics(ade20k, tmp_path / "true", False), metrics(ade20k, tmp_path / "shuffled", True)
    assert true["aAcc"] > chance(ade20k) + 15
    assert shuffled["aAcc"] < chance(ade20k) + 5
