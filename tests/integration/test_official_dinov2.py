"""Official DINOv2: real steps and its trainer, patched and launched, on the CPU, FSDP over gloo."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import official_trainers as trainers

from attn_plugins.checkpoints import identify
from attn_plugins.functional.anneal import stand

pytestmark = pytest.mark.slow

pytest.importorskip("xformers", reason="DINOv2's trainer needs xformers")
pytest.importorskip("fvcore", reason="DINOv2's trainer needs fvcore")

CONFIG = trainers.HERE.parents[1] / "integration/dinov2/check.yaml"


@pytest.fixture(scope="module")
def upstream() -> Path:
    return trainers.checkout("dinov2")


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainers.patched_copy("dinov2", tmp_path_factory.mktemp("patched"))


def steps(root: Path, *options: str, spec: str | None = None, count: int = 2, **settings: Any) -> tuple[list[str], str]:
    script = trainers.HERE / "dinov2_steps.py"
    output = trainers.on_cpu(spec, script, CONFIG, count, *options, path=root, **settings)
    return trainers.numbers(output, "total_loss"), output


@pytest.fixture(scope="module")
def plain(upstream: Path) -> list[str]:
    return steps(upstream)[0]


@pytest.mark.timeout(900)
def test_softmax_gives_the_losses_of_the_unpatched_trainer(plain: list[str], upstream: Path, patched: Path) -> None:
    assert steps(upstream, spec="softmax")[0] == plain
    assert steps(patched, "student.attn_plugins=softmax")[0] == plain
    assert len(plain) == 2


@pytest.mark.timeout(900)
def test_flag_and_launcher_take_the_same_steps_with_entmax15(plain: list[str], upstream: Path, patched: Path) -> None:
    losses, output = steps(upstream, spec="entmax15")
    assert losses == steps(patched, "student.attn_plugins=entmax15")[0]
    assert losses[0] != plain[0]
    assert len(trainers.numbers(output, "teacher_moved")) == 2


@pytest.mark.nightly  # in the ordinary tier: DDP and FSDP of a model of our own on two processes
@pytest.mark.timeout(900)
def test_sharded_over_two_processes_what_plugins_learn_is_trained_and_averaged(patched: Path) -> None:
    options = ("student.attn_plugins=entmax_alpha+registers:num=2", "student.drop_path_rate=0.3")
    losses, output = steps(patched, *options, processes=2)
    assert len(losses) == 2 * 1  # upstream prints on the main process only
    assert "teacher_moved: 0/" not in output
    assert all(float(loss) == float(loss) for loss in losses)


@pytest.mark.timeout(900)
def test_the_trainer_saves_resumes_and_evaluates_with_its_spec_and_no_other(
    patched: Path, dataset: str, tmp_path: Path
) -> None:
    def train(spec: str, **settings: Any) -> str:
        script = (patched / "dinov2/train/train.py", "--config-file", CONFIG, "--output-dir", tmp_path)
        options = (f"train.dataset_path={dataset}", f"student.attn_plugins={spec}")
        return trainers.on_cpu(None, *script, *options, path=patched, **settings)

    assert trainers.numbers(train("entmax15"), "total_loss")
    saved = tmp_path / "eval/training_1/teacher_checkpoint.pth"
    info = identify(saved)
    assert (info.codebase, info.architecture, info.shape.chunks, info.spec) == ("dinov2", "vit_small", 4, "entmax15")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["student"]["attn_plugins"] == "entmax15"
    refused = train("sparsemax", fails=True)
    assert "trained with attn_plugins {'spec': 'entmax15'}" in refused
    assert "Loading from" in train("entmax15")

    evaluation = tmp_path / "evaluate.py"
    evaluation.write_text(
        "import sys\n"
        "from omegaconf import OmegaConf\n"
        "from dinov2.eval.setup import build_model_for_eval\n"
        "config, weights, *options = sys.argv[1:]\n"
        "config = OmegaConf.merge(OmegaConf.load(config), OmegaConf.from_cli(options))\n"
        "print(build_model_for_eval(config, weights).blocks[0][0].attn.attn_plugins_normalizer)\n"
    )
    weights = (tmp_path / "config.yaml", saved)
    assert "entmax15" in trainers.on_cpu(None, evaluation, *weights, path=patched)
    refused = trainers.on_cpu(None, evaluation, *weights, "student.attn_plugins=softmax", path=patched, fails=True)
    assert "'entmax15' and 'softmax' was asked for" in refused
    assert torch.load(saved, weights_only=True)["teacher"]["backbone.cls_token"].shape == (1, 1, 384)


@pytest.mark.nightly  # in the ordinary tier: a trainer of our own that anneals, and this one that resumes
@pytest.mark.timeout(900)
def test_alpha_is_annealed_by_the_flag_and_a_resumed_run_goes_on(patched: Path, dataset: str, tmp_path: Path) -> None:
    def train(*options: str) -> str:
        script = (patched / "dinov2/train/train.py", "--config-file", CONFIG, "--output-dir", tmp_path)
        spec = "student.attn_plugins=entmax_anneal:steps=3"
        return trainers.on_cpu(None, *script, f"train.dataset_path={dataset}", spec, *options, path=patched)

    assert "entmax_anneal: after step 1, alpha is 1.16667 to 1.16667" in train()
    assert "entmax_anneal: after step 3, alpha is 1.5 to 1.5" in train("optim.epochs=2")
    for iteration, step, alpha in ((1, 2, 1.333333), (3, 4, 1.5)):
        saved = torch.load(tmp_path / f"eval/training_{iteration}/teacher_checkpoint.pth", weights_only=True)
        assert stand(saved["teacher"]) == ([alpha] * 12, step)
