"""Official DINOv3, unedited, by the launcher, on the CPU, FSDP2 over gloo."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import official_trainers as trainers

from attn_plugins.checkpoints import identify, load_backbone_state
from attn_plugins.functional.anneal import stand

pytestmark = pytest.mark.slow

CONFIG = trainers.HERE.parents[1] / "integration/dinov3/check.yaml"


@pytest.fixture(scope="module")
def upstream() -> Path:
    return trainers.checkout("dinov3")


def train(upstream: Path, dataset: str, out: Path, spec: str, *options: str, **settings: Any) -> tuple[list[str], str]:
    script = (upstream / "dinov3/train/train.py", "--config-file", CONFIG, "--output-dir", out)
    output = trainers.on_cpu(spec, *script, f"train.dataset_path={dataset}", *options, path=upstream, **settings)
    return trainers.numbers(output, "total_loss"), output


# What plugins learn has to be initialised with the network: entmax_alpha in the ordinary tier.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("processes", "spec"),
    [
        (0, "entmax_alpha"),
        pytest.param(2, "entmax_alpha", marks=pytest.mark.nightly),
        pytest.param(2, "entmax15", marks=pytest.mark.nightly),
    ],
)
def test_it_trains_and_the_teacher_says_with_what(
    upstream: Path, dataset: str, tmp_path: Path, processes: int, spec: str
) -> None:
    losses, output = train(upstream, dataset, tmp_path, spec, processes=processes)
    assert losses
    assert "nan" not in "".join(losses)
    assert f"DinoVisionTransformer number 2: 12 attention layers with {spec}" in output
    saved = tmp_path / "eval/training_1/teacher_checkpoint.pth"
    info = identify(saved)
    assert (info.codebase, info.architecture, info.patch_size, info.registers) == ("dinov3", "vit_small", 16, 2)
    assert info.spec == spec
    state, _ = load_backbone_state(saved, spec=spec)
    assert state["storage_tokens"].shape == (1, 2, 384)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_alpha_is_annealed_and_a_resumed_run_goes_on(upstream: Path, dataset: str, tmp_path: Path) -> None:
    arguments = (upstream, dataset, tmp_path, "entmax_anneal:steps=3", "checkpointing.period=2")
    assert "entmax_anneal: after step 1, alpha is 1.16667 to 1.16667" in train(*arguments)[1]
    resumed = train(*arguments, "optim.epochs=2")[1]
    assert "entmax_anneal: after step 3, alpha is 1.5 to 1.5" in resumed
    assert "after step 1" not in resumed, "the step that only makes room for the optimizer's state is none"
    assert "with entmax_anneal:steps=3: 12 of 12 layers have answered" in resumed
    for iteration, step, alpha in ((1, 2, 1.333333), (3, 4, 1.5)):
        saved = torch.load(tmp_path / f"eval/training_{iteration}/teacher_checkpoint.pth", weights_only=True)
        assert stand(saved["teacher"]) == ([alpha] * 12, step)
