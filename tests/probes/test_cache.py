"""Cached features are the features; the cache knows contents, not names, and refuses random augmentation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attn_plugins.probes.backbone import FrozenViT
from attn_plugins.probes.cache import random_transforms
from attn_plugins.probes.running import build_runner as here

from .running import options
from .test_features import images


@pytest.mark.parametrize("cls_token", ["none", "tuple"])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_hits_equal_misses(place: str, cls_token: str, backbone_file: Path, tmp_path: Path) -> None:
    where = "memory" if place == "memory" else str(tmp_path)
    cached = FrozenViT(str(backbone_file), out_indices=[1, 3], cls_token=cls_token, cache=where)
    plain = FrozenViT(str(backbone_file), out_indices=[1, 3], cls_token=cls_token)
    x = images(50, 61)
    first = cached(x)
    torch.testing.assert_close(first, plain(x))
    calls: list[int] = []
    forward = cached._features
    cached._features = lambda missing: calls.append(len(missing)) or forward(missing)  # type: ignore[method-assign,func-returns-value]
    torch.testing.assert_close(cached(x), first, rtol=0, atol=0)
    assert calls == []
    torch.testing.assert_close(cached(torch.cat([x[1:], x[:1] + 1])), plain(torch.cat([x[1:], x[:1] + 1])))
    assert calls == [1]


def test_a_folder_is_shared_by_equal_choices_alone(backbone_file: Path, tmp_path: Path) -> None:
    for layer in ([1], [1], [2]):
        FrozenViT(str(backbone_file), out_indices=layer, cache=str(tmp_path))(images(64, 64))
    assert [len(list(folder.glob("*.pt"))) for folder in tmp_path.iterdir()] == [2, 2]


def test_random_augmentation_is_refused(backbone_file: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    settings = options("voc2012_linear", backbone_file, roots, **{"model.backbone.cache": "memory"})
    with pytest.raises(ValueError, match="the training pipeline has RandomResize, RandomCrop, RandomFlip, Photo"):
        here("voc2012", settings, tmp_path).train()


def test_the_test_pipelines_are_deterministic() -> None:
    from mmengine.config import Config

    from attn_plugins.probes.paths import configs_dir

    for path in configs_dir().glob("*.py"):
        config = Config.fromfile(path)
        assert random_transforms(config.test_dataloader.dataset.pipeline) == []
        assert random_transforms(config.train_dataloader.dataset.pipeline) != []
