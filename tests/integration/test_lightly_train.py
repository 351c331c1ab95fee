"""lightly-train, which holds the official DINOv2 modules: trains with entmax15, checkpoints, resumes, loads back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import official_trainers as trainers
from PIL import Image

from attn_plugins import patch
from attn_plugins.checkpoints import CheckpointError, identify, load_backbone

pytestmark = pytest.mark.slow

pytest.importorskip("lightly_train", reason="needs lightly-train")

SCRIPT = trainers.HERE.parents[1] / "integration/lightly_train/train.py"
OPTIONS = {
    "model": "dinov2/_vittest14",
    "accelerator": "cpu",
    "devices": 1,
    "precision": "32-true",
    "num_workers": 0,
    "batch_size": 4,
    "method_args": {"output_dim": 32, "hidden_dim": 16, "dino_bottleneck_dim": 8, "ibot_bottleneck_dim": 8},
    # lightly-train's random augmentations differ from run to run whatever the seed: without them it is repeatable.
    "transform_args": {
        "image_size": [28, 28],
        **dict.fromkeys(
            ("random_resize", "random_flip", "color_jitter", "random_gray_scale", "gaussian_blur", "solarize")
        ),
        "local_view": {"num_views": 2, "view_size": [14, 14], "random_resize": None, "gaussian_blur": None},
        "global_view_1": {"gaussian_blur": None, "solarize": None},
    },
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def train(out: Path, images: Path, spec: str | None = None, **options: Any) -> list[float]:
    """Returns the logged loss of every step."""
    settings = [f"{name}={json.dumps(value)}" for name, value in {**OPTIONS, **options}.items()]
    launcher = ("-m", "attn_plugins.launch", "--attn-plugins", spec, "--") if spec else ()
    trainers.run(*launcher, SCRIPT, out, images, *settings, XFORMERS_DISABLED="1")
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["train_loss"] for record in records if "train_loss" in record]


@pytest.fixture(scope="module")
def entmax(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    out = tmp_path_factory.mktemp("entmax") / "out"
    return out, train(out, images, "entmax15", epochs=2)


@pytest.mark.nightly  # in the ordinary tier: the same of DINOv1, and entmax15 of this trainer
@pytest.mark.timeout(600)
def test_softmax_by_the_launcher_gives_the_losses_of_the_unlaunched_trainer(
    images: Path, entmax: tuple[Path, list[float]], tmp_path: Path
) -> None:
    plain = train(tmp_path / "plain", images, epochs=2)
    assert train(tmp_path / "softmax", images, "softmax", epochs=2) == plain
    assert len(plain) == 2
    assert entmax[1][0] != plain[0]


@pytest.mark.timeout(600)
def test_entmax15_loads_back(entmax: tuple[Path, list[float]]) -> None:
    out, losses = entmax
    assert len(losses) == 2
    exported = out / "exported_models/exported_last.pt"
    info = identify(exported)
    assert (info.codebase, info.patch_size, info.spec) == ("dinov2", 14, "entmax15")
    from lightly_train._models.dinov2_vit.dinov2_vit_package import DINOV2_VIT_PACKAGE

    model = DINOV2_VIT_PACKAGE.get_model("_vittest14", load_weights=False).eval()
    with pytest.raises(CheckpointError, match="'entmax15' and 'softmax' was asked"):
        load_backbone(model, exported)
    load_backbone(patch(model, "entmax15"), exported)
    weights = torch.load(exported, weights_only=True)
    assert all(tensor.equal(weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.nightly  # in the ordinary tier: a run of Lightning's trainer goes on
@pytest.mark.timeout(600)
def test_entmax15_resumes(images: Path, tmp_path: Path) -> None:
    losses = train(tmp_path / "out", images, "entmax15", epochs=2)
    resumed = train(tmp_path / "out", images, "entmax15", epochs=3, resume_interrupted=True)
    assert resumed[: len(losses)] == losses
    assert len(resumed) > len(losses)


def test_a_pickled_lightning_checkpoint_is_refused_with_the_way_out(entmax: tuple[Path, list[float]]) -> None:
    with pytest.raises(CheckpointError, match=r"refused, nothing in it was run.*lightly_train\.export"):
        identify(entmax[0] / "checkpoints/last.ckpt")
