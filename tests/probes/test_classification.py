"""The classifier grid equals DINOv2's classifiers, forward and after a step of SGD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from attn_plugins.probes.classification import ClassifierGrid, GridTop1

from . import upstream
from .conftest import checkout

RATES = [1e-3, 1e-2, 1e-1]


def grid(backbone_file: Path, classes: int = 7, **options: Any) -> ClassifierGrid:
    backbone = {
        "type": "FrozenViT",
        "checkpoint": str(backbone_file),
        "out_indices": [0, 1, 2, 3],
        "cls_token": "tuple",
    }
    return ClassifierGrid(backbone, classes, RATES, **options)


def samples(labels: list[int]) -> list[BaseDataElement]:
    found = []
    for index, label in enumerate(labels):
        sample = BaseDataElement(metainfo={"img_path": f"{index}.jpg"})
        sample.set_field(torch.tensor([label]), "gt_label")
        found.append(sample)
    return found


def test_the_grid_is_dinov2s(backbone_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = upstream.linear(checkout("DINOV2_ROOT"), monkeypatch)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    model = grid(backbone_file, blocks=[1, 4], avgpool=[False, True])
    x = torch.randn(5, 3, 64, 64)
    # DINOv2 keeps patch tokens as [B, N, C].
    tokens = [(patches.flatten(2).transpose(1, 2), cls) for patches, cls in model.backbone(x)]
    theirs, groups = linear.setup_linear_classifiers(tokens, [1, 4], RATES, batch_size=128, num_classes=7)
    assert len(theirs) == len(model.classifiers) == 12
    for own, other in zip(model.classifiers.values(), theirs.classifiers_dict.values(), strict=True):
        other.linear.load_state_dict(own.state_dict())
    for own, other in zip(model(x).values(), theirs(tokens).values(), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)

    labels = [0, 1, 2, 3, 6]
    their_optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
    losses = [torch.nn.functional.cross_entropy(v, torch.tensor(labels)) for v in theirs(tokens).values()]
    torch.stack(losses).sum().backward()
    their_optimizer.step()
    # lr: rate · total batch / 256, the total batch being 128 on each of 8 processes.
    rates = {name: float(name.split("lr_")[1]) * 1024 / 256 for name in model.classifiers}
    ours = torch.optim.SGD(
        [{"params": layer.parameters(), "lr": rates[name]} for name, layer in model.classifiers.items()], momentum=0.9
    )
    sum(model(x, samples(labels), mode="loss").values()).backward()
    ours.step()
    for own, other in zip(model.classifiers.values(), theirs.classifiers_dict.values(), strict=True):
        torch.testing.assert_close(own.weight, other.linear.weight, atol=1e-5, rtol=1e-5)


def test_labels_that_do_not_fit_are_named(backbone_file: Path) -> None:
    with pytest.raises(ValueError, match=r"labels outside 0 to 6: 1\.jpg: 7"):
        grid(backbone_file)(torch.randn(2, 3, 64, 64), samples([0, 7]), mode="loss")


def test_blocks_that_the_backbone_does_not_give(backbone_file: Path) -> None:
    with pytest.raises(ValueError, match="last 5 block"):
        grid(backbone_file, blocks=[1, 5])


def test_top1_is_the_best_of_the_grid() -> None:
    metric = GridTop1()
    predictions = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0]])
    labels: Tensor = torch.tensor([0, 1, 2, 0])
    data = [
        {"gt_label": label[None], "pred_labels": {"a": int(a), "b": int(b)}}
        for label, a, b in zip(labels, *predictions, strict=True)
    ]
    metric.process(None, data)
    assert metric.evaluate(4) == {"top1": 75.0, "top1_a": 75.0, "top1_b": 75.0}
