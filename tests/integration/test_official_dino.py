"""Official DINOv1: its scripts, patched and launched, on the CPU."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import official_trainers as trainers

from attn_plugins.checkpoints import identify, load_backbone_state, read
from attn_plugins.record import RECORD, decode

pytestmark = pytest.mark.slow

ARCH = ("--arch", "vit_tiny", "--patch_size", 32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures to train on, of four classes."""
    folder = trainers.image_folder(tmp_path_factory.mktemp("images"), 20)
    for more in sorted((folder / "train").iterdir())[4:]:
        shutil.rmtree(more)
    return folder


@pytest.fixture(scope="module")
def upstream() -> Path:
    return trainers.checkout("dino")


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainers.patched_copy("dino", tmp_path_factory.mktemp("patched"))


def train(
    root: Path,
    images: Path,
    out: Path,
    *arguments: object,
    spec: str | None = None,
    epochs: int = 2,
    batch: int = 4,
    **options: Any,
) -> tuple[str, list[float]]:
    """One optimizer step an epoch with a batch of 4, so that log.txt has every step's loss."""
    script = (trainers.HERE / "seeded.py", root / "main_dino.py", *ARCH, "--out_dim", 64, "--num_workers", 0)
    schedule = ("--warmup_epochs", 0, "--freeze_last_layer", 0, "--epochs", epochs, "--saveckp_freq", 0)
    data = ("--data_path", images / "train", "--output_dir", out, "--batch_size_per_gpu", batch)
    crops = ("--local_crops_number", 2)
    output = trainers.on_cpu(spec, *script, *schedule, *data, *crops, *arguments, path=root, **options)
    log = out / "log.txt"
    return output, [json.loads(line)["train_loss"] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture(scope="module")
def plain(upstream: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return train(upstream, images, tmp_path_factory.mktemp("plain"))[1]


@pytest.fixture(scope="module")
def entmax(patched: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    out = tmp_path_factory.mktemp("entmax")
    return out, train(patched, images, out, "--attn_plugins", "entmax15")[1]


def test_softmax_by_the_launcher_gives_the_losses_of_the_unpatched_trainer(
    plain: list[float], upstream: Path, images: Path, tmp_path: Path
) -> None:
    assert train(upstream, images, tmp_path, spec="softmax")[1] == plain


def test_softmax_by_the_flag_gives_the_losses_of_the_unpatched_trainer(
    plain: list[float], patched: Path, images: Path, tmp_path: Path
) -> None:
    assert train(patched, images, tmp_path)[1] == plain
    assert len(plain) == 2


@pytest.mark.nightly  # in the ordinary tier: the other way round
def test_a_softmax_run_is_not_resumed_with_entmax15(patched: Path, images: Path, tmp_path: Path) -> None:
    train(patched, images, tmp_path)
    refused, _ = train(patched, images, tmp_path, "--attn_plugins", "entmax15", epochs=3, fails=True)
    assert "trained with attn_plugins {'spec': 'softmax'}" in refused


def test_flag_and_launcher_train_the_same_entmax15(
    plain: list[float], entmax: tuple[Path, list[float]], upstream: Path, images: Path, tmp_path: Path
) -> None:
    losses = train(upstream, images, tmp_path, spec="entmax15")[1]
    assert losses == entmax[1]
    assert losses[0] != plain[0]


def test_the_checkpoint_says_what_it_is(entmax: tuple[Path, list[float]]) -> None:
    info = identify(entmax[0] / "checkpoint.pth")
    assert (info.codebase, info.architecture, info.patch_size) == ("dino", "vit_tiny", 32)
    assert info.spec == "entmax15"
    assert read(info.path)["args"].attn_plugins == "entmax15"
    state, _ = load_backbone_state(info.path)
    assert state["cls_token"].shape == (1, 1, 192)


def test_a_run_resumes_with_its_spec_and_with_no_other(
    entmax: tuple[Path, list[float]], patched: Path, images: Path
) -> None:
    out, losses = entmax
    refused, after = train(patched, images, out, epochs=3, fails=True)
    assert "trained with attn_plugins {'spec': 'entmax15'}" in refused
    assert after == losses
    output, after = train(patched, images, out, "--attn_plugins", "entmax15", epochs=3)
    assert output.count("<All keys matched successfully>") == 3
    assert after[:2] == losses
    assert len(after) == 3


@pytest.mark.nightly  # in the ordinary tier: two processes of trainers of our own
@pytest.mark.timeout(900)
def test_two_processes_train_what_plugins_learn_and_resume(upstream: Path, images: Path, tmp_path: Path) -> None:
    spec = "entmax_alpha+registers:num=2"
    train(upstream, images, tmp_path, spec=spec, batch=2, processes=2)
    checkpoint = read(tmp_path / "checkpoint.pth")
    student = {key.removeprefix("module."): value for key, value in checkpoint["student"].items()}
    learned = [key for key in student if "attn_plugins" in key and not key.endswith(RECORD)]
    assert len(learned) == 12 + 1
    for key in learned:
        assert not student[key].equal(checkpoint["teacher"][key])
    losses = train(upstream, images, tmp_path, spec=spec, batch=2, processes=2, epochs=3)[1]
    assert len(losses) == 3


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainers.image_folder(tmp_path_factory.mktemp("labelled"), 100)  # eval_knn splits val into 100 parts


def evaluation(script: str, checkpoint: Path, patched: Path, labelled: Path, out: Path) -> tuple[object, ...]:
    weights = ("--pretrained_weights", checkpoint, "--data_path", labelled, "--num_workers", 0)
    options = {
        "eval_knn.py": ("--nb_knn", 5),
        "eval_linear.py": ("--epochs", 1, "--num_labels", 20, "--output_dir", out),
    }[script]
    return (patched / script, *ARCH, *weights, *options)


@pytest.mark.parametrize("script", [pytest.param("eval_knn.py", marks=pytest.mark.nightly), "eval_linear.py"])
def test_evaluation_takes_the_spec_of_the_checkpoint(
    entmax: tuple[Path, list[float]], patched: Path, labelled: Path, tmp_path: Path, script: str
) -> None:
    command = evaluation(script, entmax[0] / "checkpoint.pth", patched, labelled, tmp_path)
    output = trainers.on_cpu(None, *command, "--attn_plugins", "entmax15")
    assert {"eval_knn.py": "5-NN classifier result: Top1", "eval_linear.py": "Accuracy at epoch 0"}[script] in output
    assert "missing_keys=[]" in output


@pytest.mark.nightly  # in the ordinary tier: training refuses it, by the same function
@pytest.mark.parametrize("script", ["eval_knn.py", "eval_linear.py"])
def test_evaluation_takes_no_other_spec(
    entmax: tuple[Path, list[float]], patched: Path, labelled: Path, tmp_path: Path, script: str
) -> None:
    command = evaluation(script, entmax[0] / "checkpoint.pth", patched, labelled, tmp_path)
    assert "was trained with 'entmax15' and 'softmax' was asked for" in trainers.on_cpu(None, *command, fails=True)


def test_attention_maps_are_the_sparse_ones(
    entmax: tuple[Path, list[float]], patched: Path, labelled: Path, tmp_path: Path
) -> None:
    pytest.importorskip("skimage", reason="visualize_attention.py needs scikit-image")
    image = next((labelled / "val").rglob("*.JPEG"))
    weights = ("--pretrained_weights", entmax[0] / "checkpoint.pth", "--image_path", image, "--output_dir", tmp_path)
    command = (patched / "visualize_attention.py", *ARCH, *weights)
    assert "was trained with 'entmax15'" in trainers.run(*command, fails=True)
    trainers.run(*command, "--attn_plugins", "entmax15")
    assert len(list(tmp_path.glob("attn-head*.png"))) == 3


@pytest.mark.nightly  # in the ordinary tier: a trainer of our own that anneals, and this one that resumes
def test_alpha_is_annealed_by_the_flag_and_a_resumed_run_goes_on(
    plain: list[float], patched: Path, images: Path, tmp_path: Path
) -> None:
    flag = ("--attn_plugins", "entmax_anneal:steps=3")
    losses = train(patched, images, tmp_path, *flag)[1]
    assert losses[0] == plain[0], "the first step is softmax's"
    assert losses[1] != plain[1]
    output, after = train(patched, images, tmp_path, *flag, epochs=4)
    assert "after step 3, alpha is 1.5 to 1.5" in output
    assert after[:2] == losses and len(after) == 4
    checkpoint = read(tmp_path / "checkpoint.pth")
    for network, prefix in (("student", "module.backbone."), ("teacher", "backbone.")):
        told = decode(checkpoint[network][f"{prefix}blocks.3.attn.attn_plugins_normalizer._extra_state"])
        assert (int(told["step"]), told["alpha"]) == (4, "1.500000")
