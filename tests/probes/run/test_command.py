"""The command line that starts mim, and bad input named before anything is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config, DictAction

from attn_plugins.cli import main
from attn_plugins.probes.images import LoadProbeImage
from attn_plugins.probes.run.command import data_options, mim_command, size_options
from attn_plugins.probes.run.paths import config_file, configs_dir
from attn_plugins.probes.run.runner import build_runner as here
from attn_plugins.probes.segmentation import CheckLabels

from ..running import options


@pytest.mark.parametrize("path", sorted(configs_dir().glob("*.py")), ids=lambda path: path.stem)
def test_overrides_reach_every_loader_and_nothing_else(path: Path) -> None:
    options = data_options("/data", workers=0) | size_options(str(path), (48, 64))
    command = mim_command("train", str(path), options, work_dir="w")
    before, config = Config.fromfile(path), Config.fromfile(path)
    config.merge_from_dict(
        {
            k: DictAction._parse_iterable(v)
            for k, v in (o.split("=", 1) for o in command[command.index("--cfg-options") + 1 :])
        }
    )
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        assert config[loader].dataset.data_root == "/data" and not config[loader].persistent_workers
        kinds = [t.type for t in config[loader].dataset.pipeline]
        assert kinds == [t.type for t in before[loader].dataset.pipeline]
        sizes = [v for t in config[loader].dataset.pipeline for k, v in t.items() if k in ("crop_size", "scale")]
        assert all(max(size) < 600 for size in sizes if isinstance(size, tuple | list))
    for key in ("optim_wrapper", "param_scheduler", "train_cfg", "custom_hooks"):
        assert config[key] == before[key]


def test_mim_runs_in_this_interpreter_without_a_shell(
    monkeypatch: pytest.MonkeyPatch, backbone_file: Path, tmp_path: Path
) -> None:
    calls = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    argv = [
        "probe",
        "voc2012",
        "--checkpoint",
        str(backbone_file),
        "--data-root",
        str(tmp_path),
        "--gpus",
        "2",
        "--resume",
    ]
    assert main([*argv, "--cfg-options", "train_cfg.max_iters=7"]) == 0
    (command,) = calls
    assert command[:6] == [sys.executable, "-m", "mim", "train", "mmseg", str(config_file("voc2012"))]
    assert {
        "--resume",
        "--launcher",
        "pytorch",
        f"model.backbone.checkpoint={backbone_file}",
        "train_cfg.max_iters=7",
    } < set(command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coco"], "no probe 'coco'"),
        (["sunrgbd"], "the NYUv2 probe transferred"),
        (["voc2012", "--test", "missing.pth"], "missing.pth does not exist"),
        (["voc2012", "--cfg-options", "nonsense"], "is not KEY=VALUE"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], message: str, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = arguments
    assert main(["probe", name, "--checkpoint", str(backbone_file), "--data-root", str(tmp_path), *rest]) == 2
    assert message in capsys.readouterr().err


def test_configs_are_found_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attn_plugins import shipped
    from attn_plugins.probes.run.paths import configs_dir

    (tmp_path / "attn_plugins/_mmseg_configs/_base_").mkdir(parents=True)
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "attn_plugins")
    assert configs_dir() == tmp_path / "attn_plugins/_mmseg_configs"
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="reinstall"):
        configs_dir()


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_unreadable_images_stop_the_run_or_are_skipped(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "2012_000017.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read image .*2012_000017\.jpg"):
        LoadProbeImage()({"img_path": str(path)})
    lenient = LoadProbeImage(skip_unreadable=True)
    assert lenient({"img_path": str(path)}) is None and lenient.skipped == {str(path)}
    cv2.imwrite(str(path), np.zeros((4, 5, 3), np.uint8))
    assert lenient({"img_path": str(path)})["img"].shape == (4, 5, 3)


def test_labels_out_of_range_are_named() -> None:
    results = {"gt_seg_map": np.array([[0, 20, 255]], np.uint8), "seg_map_path": "mask.png"}
    assert CheckLabels(21)(results) is results
    with pytest.raises(ValueError, match=r"mask\.png has labels \[20\]; expected 0 to 19"):
        CheckLabels(20)(results)


@pytest.mark.slow
def test_a_head_of_other_classes_is_refused(backbone_file: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    settings = options("voc2012_linear", backbone_file, roots, **{"model.decode_head.num_classes": 20})
    with pytest.raises(ValueError, match="the head has 20 classes, PascalVOCDataset has 21"):
        here("voc2012", settings, tmp_path).train()


def test_a_total_batch_that_cannot_be_dealt_out_stops_the_run(
    backbone_file: Path, roots: dict[str, Path], tmp_path: Path
) -> None:
    settings = options("voc2012_linear", backbone_file, roots, total=10, **{"train_dataloader.batch_size": 4})
    with pytest.raises(ValueError, match=r"set train_dataloader\.batch_size to one of 1, 2, 5, 10"):
        here("voc2012", settings, tmp_path).train()


def test_an_empty_split_stops_the_run(backbone_file: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    settings = options("voc2012_linear", backbone_file, roots) | {"train_dataloader.dataset.ann_file": empty}
    with pytest.raises(
        ValueError, match=r"the training split is empty: PascalVOCDataset found nothing in data_root=.*empty\.txt"
    ):
        here("voc2012", settings, tmp_path).train()
