"""Real runs: every config through mim, resumed, on two processes, and learning something."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_plugins.checkpoints import save
from attn_plugins.probes.run.command import mim_command
from attn_plugins.probes.run.runner import build_runner as here
from attn_plugins.results import collect

from ..conftest import ARCH, OPTIONS, tiny_vit
from ..running import LAYOUT_OF, mim, options, weights

pytestmark = pytest.mark.slow


@pytest.mark.nightly  # in the ordinary tier: the demo's probe goes through mim, and each kind runs in this process
@pytest.mark.parametrize("probe", LAYOUT_OF)
def test_every_config_trains_through_mim(
    probe: str, backbone_file: Path, roots: dict[str, Path], tmp_path: Path
) -> None:
    output = mim("train", probe, options(probe, backbone_file, roots), work_dir=tmp_path)
    assert "total batch 4 = 1 process(es) x 4 images" in output
    head = weights(tmp_path, 2)
    assert head and not any("backbone" in name for name in head)
    record = json.loads((tmp_path / "probe.json").read_text())
    assert record["backbone"]["plugins"] == "entmax15"
    assert [(e["split"], e["iter"]) for e in record["evaluations"]] == [("val", 2)]


@pytest.mark.parametrize("through_mim", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_nyuv2_head_is_tested_on_sunrgbd(
    through_mim: bool, backbone_file: Path, roots: dict[str, Path], tmp_path: Path
) -> None:
    here("nyuv2", options("nyuv2_linear4_depth", backbone_file, roots), tmp_path / "nyu").train()
    settings = options("sunrgbd_linear4_depth", backbone_file, roots)
    head = str(tmp_path / "nyu/iter_2.pth")
    if through_mim:
        mim("test", "sunrgbd", settings, "--checkpoint", head, work_dir=tmp_path / "sun")
    else:
        runner = here("sunrgbd", settings, tmp_path / "sun")
        runner._load_from = head
        runner.test()
    (row,) = collect([tmp_path])
    best = {key.split(" [")[0]: value for key, value in row.best.items()}
    assert set(best) == {"nyuv2", "sunrgbd"} and best["sunrgbd"] > 0

    save(tmp_path / "other.pth", tiny_vit("entmax15", seed=1), arch=ARCH, arch_options=OPTIONS)
    runner = here("sunrgbd", options("sunrgbd_linear4_depth", tmp_path / "other.pth", roots), tmp_path / "no")
    runner._load_from = head
    with pytest.raises(Exception, match=r"this head belongs to another backbone\. digest"):
        runner.test()


@pytest.mark.parametrize("probe", ["voc2012_linear", "nyuv2_linear4_depth", "imagenet_linear"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    probe: str, backbone_file: Path, roots: dict[str, Path], tmp_path: Path
) -> None:
    settings = options(probe, backbone_file, roots, 4, **{"default_hooks.checkpoint.interval": 2})
    runner = here(probe, settings, tmp_path / "whole")
    runner.train()
    (tmp_path / "resumed").mkdir()
    # What a kill during the second checkpoint leaves: half a file, and the note about the first.
    first = (tmp_path / "whole/iter_2.pth").read_bytes()
    (tmp_path / "resumed/iter_2.pth").write_bytes(first)
    (tmp_path / "resumed/iter_4.pth").write_bytes(first[: len(first) // 2])
    (tmp_path / "resumed/last_checkpoint").write_text(str(tmp_path / "resumed/iter_2.pth"))
    here(probe, settings, tmp_path / "resumed", resume=True).train()
    torch.testing.assert_close(weights(tmp_path / "resumed", 4), weights(tmp_path / "whole", 4), rtol=0, atol=0)
    whole, resumed = (json.loads((tmp_path / name / "probe.json").read_text()) for name in ("whole", "resumed"))
    assert resumed["evaluations"] == whole["evaluations"]


@pytest.mark.nightly
def test_kill_9_and_resume_through_mim(backbone_file: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    many = {"default_hooks.checkpoint.interval": 2, "train_cfg.val_interval": 1000}
    settings = options("voc2012_linear", backbone_file, roots, 16, **many)
    command = mim_command("train", "voc2012", settings, work_dir=tmp_path / "killed")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (tmp_path / "killed/last_checkpoint").exists():
        assert process.poll() is None
        time.sleep(0.02)
    # mim's own child trains: both go.
    subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=True)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/iter_16.pth").exists()
    output = mim("train", "voc2012", settings, "--resume", work_dir=tmp_path / "killed")
    assert "resumed epoch: 0, iter:" in output
    here("voc2012", settings, tmp_path / "whole").train()
    torch.testing.assert_close(weights(tmp_path / "killed", 16), weights(tmp_path / "whole", 16), rtol=1e-4, atol=1e-6)


# In the ordinary tier: batch norm, and the draws, over two processes.
@pytest.mark.nightly
def test_two_processes_match_one_through_mim(backbone_file: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    settings = options("voc2012_linear", backbone_file, roots, 3)
    output = mim("train", "voc2012", settings, "--launcher", "pytorch", "--gpus", "2", work_dir=tmp_path / "two")
    assert "total batch 4 = 2 process(es) x 2 images" in output
    record = json.loads((tmp_path / "two/probe.json").read_text())
    assert record["backbone"]["plugins"] == "entmax15"
    assert [(e["split"], e["iter"]) for e in record["evaluations"]] == [("val", 3)]
    head = weights(tmp_path / "two", 3)
    assert head and not any("backbone" in name for name in head)
    here("voc2012", settings, tmp_path / "one").train()
    torch.testing.assert_close(weights(tmp_path / "two", 3), weights(tmp_path / "one", 3), rtol=1e-4, atol=1e-6)


def test_accumulated_gradients_match_one_pass(backbone_file: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    settings = options("nyuv2_linear4_depth", backbone_file, roots, 3)
    here("nyuv2", settings, tmp_path / "one").train()
    here("nyuv2", settings | {"train_dataloader.batch_size": 2}, tmp_path / "parts").train()
    torch.testing.assert_close(weights(tmp_path / "parts", 3), weights(tmp_path / "one", 3), rtol=1e-4, atol=1e-6)


@pytest.mark.nightly
def test_layers_are_swept_by_gridsearch(backbone_file: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    settings = options("voc2012_linear", backbone_file, roots, 1)
    sweep = ["--search-args", "--model.backbone.out_indices [0] [3] --model.backbone.cls_token concat"]
    mim("gridsearch", "voc2012", settings, *sweep, work_dir=tmp_path / "sweep")
    layers = {}
    for file in tmp_path.glob("sweep_search*/probe.json"):
        identity: dict[str, Any] = json.loads(file.read_text())["backbone"]
        layers[tuple(identity["layers"])] = identity["cls_token"]
    assert layers == {(0,): "concat", (3,): "concat"}
