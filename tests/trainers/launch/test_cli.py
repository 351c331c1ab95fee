"""The launcher around a trainer that knows nothing of it, in processes of their own as users start them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import tiny_vit
from helpers.tiny_vit import TinyViT

from attn_plugins import UnknownPluginError, patch
from attn_plugins.checkpoints import CheckpointError, identify, read
from attn_plugins.launch import main

HERE = Path(tiny_vit.__file__).parent
TRAINER = str(HERE / "trainer.py")


class Result:
    def __init__(self, returncode: object, stdout: str, stderr: str) -> None:
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the launcher in this process, as often as a test likes."""
    monkeypatch.syspath_prepend(HERE)

    def run(spec: str, *script: object) -> Result:
        with monkeypatch.context() as patches:
            patches.setattr(sys, "argv", sys.argv)
            patches.setattr(sys, "path", list(sys.path))
            try:
                code: object = main(["--attn-plugins", spec, "--", *map(str, script)])
            except SystemExit as end:
                code = end.code
        return Result(code, *capsys.readouterr())

    return run


def python(*arguments: object) -> Result:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def losses(result: Result) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith("loss")]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return losses(python(TRAINER, "--out", tmp_path_factory.mktemp("plain"), "--steps", 3))


@pytest.mark.slow
def test_softmax_gives_the_losses_of_the_unlaunched_trainer_to_the_last_digit(plain: list[str], tmp_path: Path) -> None:
    command = ("-m", "attn_plugins.launch", "--attn-plugins", "softmax", "--", TRAINER, "--out", tmp_path)
    assert losses(python(*command)) == plain
    assert len(plain) == 3


@pytest.mark.slow
def test_entmax15_is_trained_stamped_resumed_and_not_resumed_as_anything_else(
    launch: Callable[..., Result], plain: list[str], tmp_path: Path
) -> None:
    whole = losses(launch("entmax15", TRAINER, "--out", tmp_path / "..", "--steps", 4))
    first = launch("entmax15", TRAINER, "--out", tmp_path, "--steps", 2)
    assert "TinyViT number 1: 2 attention layers with entmax15" in first.stderr
    says = "after the first training step, TinyViT with entmax15: 2 of 2 layers have answered attention calls, 1 each"
    assert first.stderr.count(says) == 1
    assert losses(first) == whole[:2] != plain[:2]
    checkpoint = read(tmp_path / "checkpoint.pth")
    assert {key: checkpoint[key]._metadata[""]["attn_plugins"] for key in ("student", "teacher")} == {
        "student": {"spec": "entmax15"},
        "teacher": {"spec": "entmax15"},
    }
    assert losses(launch("entmax15", TRAINER, "--out", tmp_path, "--steps", 4)) == whole[2:]
    for other in ("softmax", "sparsemax"):
        with pytest.raises(CheckpointError, match=f"was trained with 'entmax15' and '{other}' was asked for"):
            launch(other, TRAINER, "--out", tmp_path, "--steps", 5)


def test_what_a_plugin_learns_is_optimised_and_averaged(launch: Callable[..., Result], tmp_path: Path) -> None:
    launch("entmax_alpha", TRAINER, "--out", tmp_path, "--steps", 3)
    checkpoint = read(tmp_path / "checkpoint.pth")
    learned = [key for key in checkpoint["student"] if key.endswith("logit")]
    assert len(learned) == 2
    start = torch.zeros(2)  # alpha = 1.5, half way
    for key in learned:
        student, teacher = checkpoint["student"][key], checkpoint["teacher"][key]
        assert not torch.equal(student, start)
        assert (teacher - start).abs().max() < (student - start).abs().max()


def test_a_module_is_run_as_python_would(launch: Callable[..., Result], tmp_path: Path) -> None:
    result = launch("entmax15", "-m", "trainer", "--out", tmp_path, "--steps", 1)
    assert "2 attention layers with entmax15" in result.stderr
    assert len(losses(result)) == 1


def test_a_trainer_that_builds_no_vit_ends_in_an_error(launch: Callable[..., Result], tmp_path: Path) -> None:
    result = launch("entmax15", TRAINER, "--out", tmp_path, "--model", "linear")
    assert result.returncode == 1
    assert "nothing was patched with 'entmax15'" in result.stderr


def test_a_typo_ends_before_the_trainer_starts(launch: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(UnknownPluginError, match="entmax15"):
        launch("entmaks15", TRAINER, "--out", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["--"], ["--", "-m"], ["--", "absent.py"]])
def test_a_call_without_a_script_says_how_it_is_made(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: python -m attn_plugins.launch" in capsys.readouterr().err


def test_the_trainers_own_exit_status_is_passed_on(launch: Callable[..., Result], tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import sys\nsys.exit(7)\n")
    assert launch("entmax15", script).returncode == 7


def test_a_trainer_that_starts_itself_again_is_stopped(launch: Callable[..., Result], tmp_path: Path) -> None:
    script = tmp_path / "starts.py"
    script.write_text("import subprocess, sys\nsubprocess.run([sys.executable, __file__])\n")
    with pytest.raises(RuntimeError, match="torchrun --nproc_per_node"):
        launch("entmax15", script)


def test_timms_models_are_patched_and_their_checkpoints_identified(
    launch: Callable[..., Result], tmp_path: Path
) -> None:
    script = tmp_path / "timm_trainer.py"
    script.write_text(
        "import sys, timm, torch\n"
        "model = timm.create_model('vit_tiny_patch16_224', img_size=32)\n"
        "torch.save({'state_dict': model.state_dict()}, sys.argv[1])\n"
    )
    launch("entmax15", script, tmp_path / "last.pth")
    info = identify(tmp_path / "last.pth")
    assert (info.architecture, info.patch_size, info.spec) == ("vit_tiny", 16, "entmax15")


def test_a_trainer_that_takes_state_dicts_apart_cannot_mix_specs_either(
    launch: Callable[..., Result], tmp_path: Path
) -> None:
    torch.save({"state_dict": patch(TinyViT(), "entmax15").state_dict()}, tmp_path / "last.pth")
    script = tmp_path / "evaluates.py"
    script.write_text(
        "import sys, torch\n"
        "from tiny_vit import TinyViT\n"
        "state = dict(torch.load(sys.argv[1])['state_dict'])\n"
        "print('loaded', TinyViT().load_state_dict(state))\n"
    )
    assert "All keys matched" in launch("entmax15", script, tmp_path / "last.pth").stdout
    with pytest.raises(CheckpointError, match="'entmax15' and 'softmax' was asked for"):
        launch("softmax", script, tmp_path / "last.pth")
