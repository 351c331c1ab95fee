"""mmseg's own inference API predicts with a trained head: init_model, inference_model, MMSegInferencer, `--tta`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import MMSegInferencer, inference_model, init_model
from PIL import Image

from attn_plugins.checkpoints import save
from attn_plugins.probes.run.paths import config_file
from attn_plugins.probes.run.runner import build_runner as here

from .conftest import ARCH, OPTIONS, tiny_vit
from .running import mim, options

KEY = {
    "voc2012_linear": "pred_sem_seg", "nyuv2_linear4_depth": "pred_depth_map",
    "kitti_linear4_depth": "pred_depth_map", "sunrgbd_linear4_depth": "pred_depth_map",
}  # fmt: skip


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that is no data set's."""
    file = tmp_path_factory.mktemp("photo") / "mine.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, quality=95)
    return file


@pytest.fixture(scope="module", params=KEY)
def trained(
    request: pytest.FixtureRequest,
    backbone_file: Path,
    roots: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Config, str]:
    """(probe, its config with the backbone filled in, a head)."""
    probe = request.param
    runner = here(probe, options(probe, backbone_file, roots, 1, 2), tmp_path_factory.mktemp("head"))
    runner.train()
    return probe, runner.cfg, str(Path(runner.work_dir) / "iter_1.pth")


@pytest.mark.slow
def test_a_picture_is_predicted_by_every_door(trained: tuple[str, Config, str], photo: Path) -> None:
    probe, config, head = trained
    name = KEY[probe]
    model = init_model(copy.deepcopy(config), head, device="cpu")
    from_file = inference_model(model, str(photo)).get(name).data
    assert from_file.shape == (1, 60, 90)
    bgr = np.asarray(Image.open(photo))[..., ::-1]
    torch.testing.assert_close(inference_model(model, bgr.copy()).get(name).data, from_file)
    predicted = MMSegInferencer(copy.deepcopy(config), weights=head, device="cpu", show_progress=False)(str(photo))
    np.testing.assert_allclose(predicted["predictions"], from_file[0].numpy(), rtol=1e-5, atol=1e-5)


def test_a_head_of_another_backbone_is_refused_by_every_door(trained: tuple[str, Config, str], tmp_path: Path) -> None:
    _, config, head = trained
    other = save(tmp_path / "o.pth", tiny_vit("entmax15", seed=1), arch=ARCH, arch_options=OPTIONS)
    config = copy.deepcopy(config)
    config.model.backbone.checkpoint = str(other)
    doors: list[Callable[[], Any]] = [
        lambda: init_model(copy.deepcopy(config), head, device="cpu"),
        lambda: MMSegInferencer(copy.deepcopy(config), weights=head, device="cpu", show_progress=False),
    ]
    for door in doors:
        with pytest.raises(ValueError, match=r"this head belongs to another backbone\. (digest|sha256)"):
            door()


def test_a_state_dict_tells_its_backbone_and_is_refused_whole(trained: tuple[str, Config, str]) -> None:
    _, config, head = trained
    model = init_model(copy.deepcopy(config), head, device="cpu")
    state = model.state_dict()
    model.load_state_dict(state)
    for choice in ({"layers": [0]}, {"norm": "both"}, {"autocast": "bf16"}, {"digest": "x", "sha256": "x"}):
        own = dict(model.backbone.identity)
        model.backbone.identity |= choice
        before = {name: value.clone() for name, value in model.named_parameters()}
        changed = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
        with pytest.raises(ValueError, match=f"another backbone.*({'|'.join(choice)})"):
            model.load_state_dict(changed)
        assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
        model.backbone.identity = own
    with pytest.raises(ValueError, match="record of its backbone is damaged"):
        model.load_state_dict(state | {"_extra_state": torch.zeros(3, dtype=torch.uint8)})


@pytest.mark.parametrize("meta", [None, 5, [1], {}, {"backbone": 5}, {"backbone": {}}, {"backbone": {"plugins": 1}}])
def test_a_checkpoint_of_something_else_is_one_error(meta: Any, backbone_file: Path) -> None:
    from types import SimpleNamespace

    from attn_plugins.probes import BackboneIdentityHook, FrozenViT

    runner = SimpleNamespace(model=SimpleNamespace(backbone=FrozenViT(str(backbone_file))))
    with pytest.raises(ValueError, match="does not say which backbone"):
        BackboneIdentityHook().after_load_checkpoint(runner, {"meta": meta})


@pytest.mark.parametrize("probe", ["voc2012", "ade20k", "cityscapes"])
def test_segmentation_configs_have_test_time_augmentation(probe: str) -> None:
    config = Config.fromfile(config_file(probe))
    resizes, flips, *_ = config.tta_pipeline[1].transforms
    base = config.val_dataloader.dataset.pipeline[1].scale
    assert [resize.scale for resize in resizes] == [
        (int(base[0] * r), int(base[1] * r)) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    ]
    assert [flip.prob for flip in flips] == [0.0, 1.0] and config.tta_model.type == "SegTTAModel"


@pytest.mark.nightly
def test_time_augmentation_runs_through_mim(backbone_file: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    settings = options("voc2012_linear", backbone_file, roots, 1, 2)
    here("voc2012", settings, tmp_path / "train").train()
    few = {f"tta_pipeline.1.transforms.0.{i}.scale": (96, 48) for i in range(6)}
    head = str(tmp_path / "train/iter_1.pth")
    output = mim("test", "voc2012", settings | few, "--tta", "--checkpoint", head, work_dir=tmp_path / "tta")
    assert "mIoU" in output
