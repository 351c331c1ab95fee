"""A work dir belongs to one run: what it is of is recorded, and another backbone, data set or process is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mmengine.config import Config

from attn_plugins.checkpoints import save
from attn_plugins.cli import main
from attn_plugins.cli.probe import name_of
from attn_plugins.data.layouts import LAYOUTS
from attn_plugins.probes.run import recording
from attn_plugins.probes.run.paths import configs_dir
from attn_plugins.probes.run.runner import build_runner as here
from attn_plugins.results import read_result

from ..conftest import ARCH, OPTIONS, tiny_vit
from ..running import options


@pytest.fixture
def settings(backbone_file: Path, roots: dict[str, Path]) -> dict[str, Any]:
    return options("voc2012_linear", backbone_file, roots, 1, 2)


@pytest.mark.slow
def test_the_record_says_of_what_it_is(settings: dict[str, Any], roots: dict[str, Path], tmp_path: Path) -> None:
    here("voc2012", settings, tmp_path).train()
    result = read_result(tmp_path / "probe.json")
    train, val = result.data["train"], result.data["val"]
    assert (train.dataset, train.root, train.images) == ("PascalVOCDataset", str(roots["voc2012"]), 4)
    assert (train.split, val.split) == tuple(f"ImageSets/Segmentation/{name}.txt" for name in ("train", "val"))
    assert result.overrides is not None and result.overrides["train_cfg.max_iters"] == 1
    assert not any("checkpoint" in key or "data_root" in key or "work_dir" in key for key in result.overrides)
    assert {"layers", "norm", "cls_token", "autocast", "features_digest", "plugins"} < result.backbone.keys()


@pytest.mark.parametrize("path", sorted(configs_dir().glob("*.py")), ids=lambda path: path.stem)
def test_a_shipped_config_overrides_nothing(path: Path) -> None:
    config = Config.fromfile(path)
    assert recording.overrides(config) == {}
    config.merge_from_dict({"model.backbone.checkpoint": "x", "train_dataloader.num_workers": 0, "work_dir": "w"})
    assert recording.overrides(config) == {}
    config.train_cfg.total_batch_size = 3
    assert recording.overrides(config) == {"train_cfg.total_batch_size": 3}


DIFFERENT = ["backbone", *(pytest.param(what, marks=pytest.mark.nightly) for what in ("data", "options"))]


@pytest.mark.slow
@pytest.mark.parametrize("what", DIFFERENT)
def test_another_run_in_the_same_folder_is_refused_and_changes_nothing(
    what: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    here("voc2012", settings, tmp_path / "run").train()
    before = (tmp_path / "run/probe.json").read_bytes()
    if what == "backbone":
        other = save(tmp_path / "o.pth", tiny_vit("entmax15", seed=1), arch=ARCH, arch_options=OPTIONS)
        change: dict[str, Any] = {"model.backbone.checkpoint": other}
        told = r"backbone's (digest|sha256): "
    elif what == "data":
        root = LAYOUTS["voc2012"](tmp_path / "d", 4, 2, seed=1, size=(96, 128))
        change = {f"{loader}_dataloader.dataset.data_root": root for loader in ("train", "val")}
        told = "train data: "
    else:
        change = {"optim_wrapper.optimizer.lr": 2e-3}
        told = r"optim_wrapper\.optimizer\.lr: 'default', now 0\.002"
    runner = here("voc2012", settings | change, tmp_path / "run")
    with pytest.raises(ValueError, match=rf"holds the result of another run: {told}.*Give another --work-dir"):
        runner.train()
    assert (tmp_path / "run/probe.json").read_bytes() == before
    here("voc2012", settings, tmp_path / "run").train()


@pytest.mark.slow
def test_a_second_run_at_the_same_time_is_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_PATIENCE", 0.1)
    tmp_path.joinpath("run").mkdir()
    with (
        FileLock(str(tmp_path / "run/.probe.lock")),
        pytest.raises(ValueError, match=r"another run is at work in .*run: wait for it, or give another --work-dir"),
    ):
        here("voc2012", settings, tmp_path / "run").train()
    here("voc2012", settings, tmp_path / "run").train()
    assert (tmp_path / "run/probe.json").is_file()


def test_default_work_dirs_differ_with_the_checkpoints_contents(
    backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> _Done:
        commands.append(command)
        return _Done()

    monkeypatch.setattr("attn_plugins.cli.probe.subprocess.run", run)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "checkpoint.pth").write_text(folder)
        argv = ["probe", "voc2012", "--checkpoint", str(tmp_path / folder / "checkpoint.pth")]
        assert main([*argv, "--data-root", str(tmp_path)]) == 0
    first, second = (Path(command[command.index("--work-dir") + 1]) for command in commands)
    assert first.parent == second.parent == Path("work_dirs/voc2012_linear") and first != second
    assert first.name.startswith("checkpoint-")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    assert name_of(tmp_path / "c/checkpoint.pth") == first.name
    assert name_of(tmp_path / "a") != name_of(tmp_path / "b")


class _Done:
    returncode = 0
