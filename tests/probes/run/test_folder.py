"""`attn-plugins probe folder`: from a user's folders to a config that mmseg runs alone, a result and a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from attn_plugins.checkpoints import save
from attn_plugins.cli import main
from attn_plugins.data.scenes import render
from attn_plugins.probes import LoadMask
from attn_plugins.probes.run.folder import default_iterations
from attn_plugins.results import collect, read_images, read_result
from attn_plugins.results import render as render_table

from ..conftest import ARCH, OPTIONS, tiny_vit

COLOURS = np.random.default_rng(0).integers(0, 256, (21, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rendered scenes: images, masks with values and with colours, depth in mm, and class folders."""
    root = tmp_path_factory.mktemp("mine") / "garden"
    for number in range(10):
        scene = render(0, number, (64, 96), label=number % 2 + 1)
        mask = np.minimum(scene.mask, 2)
        for kind, pixels in (
            ("images", scene.image),
            ("masks", np.where(mask == 2, np.uint8(7), mask)),
            ("colours", COLOURS[mask]),
            ("depth", (np.clip(scene.depth, 0, 20) * 1000).astype(np.uint16)),
            (f"classes/{'ab'[number % 2]}", scene.image),
        ):
            file = root / kind / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return root


def checked(pictures: Path, backbone: Path, work_dir: Path, *more: str, kind: str = "masks") -> Config:
    """The config that the command writes."""
    target = {"masks": ["--masks", str(pictures / "masks")], "depth": ["--depth", str(pictures / "depth")]}
    target["colours"] = ["--masks", str(pictures / "colours")]
    images = str(pictures / ("classes" if kind == "classes" else "images"))
    command = ["probe", "folder", "--images", images, *target.get(kind, []), "--checkpoint", str(backbone)]
    command += ["--work-dir", str(work_dir), "--workers", "0", "--check", "--config-out", str(work_dir / "mine.py")]
    assert main([*command, *more]) == 0
    return Config.fromfile(work_dir / "mine.py")


def trained(config: Config, work_dir: Path) -> Runner:
    config.work_dir, config.log_level, config.experiment_name = str(work_dir), "ERROR", work_dir.name
    config.visualizer.name = work_dir.name
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


MASKS = ("--void", "none", "--size", "48", "--iterations", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more", "metric"),
    [
        ("masks", MASKS, "mIoU"),
        ("colours", (*MASKS, "--fast"), "mIoU"),
        ("depth", ("--depth-scale", "1000", "--iterations", "2", "--fast"), "rmse"),
        ("masks", (*MASKS, "--finetune", "--layer-decay", "0.8"), "mIoU"),
        ("depth", ("--depth-scale", "1000", "--iterations", "2"), "rmse"),
        ("classes", ("--iterations", "2", "--cfg-options", "train_cfg.total_batch_size=4"), "top1"),
    ],
)
def test_the_config_alone_trains_and_leaves_a_row(
    kind: str, more: tuple[str, ...], metric: str, pictures: Path, backbone_file: Path, tmp_path: Path
) -> None:
    store = ("--store", str(tmp_path / "features")) if "--fast" in more else ()
    config = checked(pictures, backbone_file, tmp_path / "run", *more, *store, kind=kind)
    trained(config, tmp_path / "run")
    result = read_result(tmp_path / "run" / "probe.json")
    name = "classes" if kind == "classes" else "garden"
    assert result.probe == f"own:{name}" and result.data["train"].images == 8 and result.data["val"].images == 2
    assert metric in result.evaluations[-1].metrics
    iteration, images = read_images(tmp_path / "run" / "images.json")
    assert iteration == 2 and len(images) == 2
    (row,) = collect([tmp_path / "run"])
    (column,) = row.best
    kind = " [fast]" if "--fast" in more else " [fine-tuned]" if "--finetune" in more else ""
    assert column == f"own:{name} {metric}{kind}"


def test_masks_of_values_and_of_colours_are_the_same_data(pictures: Path, backbone_file: Path, tmp_path: Path) -> None:
    by_value = checked(pictures, backbone_file, tmp_path / "v", *MASKS).train_dataloader.dataset.pipeline
    by_colour = checked(
        pictures, backbone_file, tmp_path / "c", *MASKS, kind="colours"
    ).train_dataloader.dataset.pipeline
    reading = [next(t for t in pipeline if t["type"] == "LoadMask") for pipeline in (by_value, by_colour)]
    assert [list(v) for v in (reading[0]["values"],)] == [[0, 1, 7]]
    order = [[tuple(c) for c in COLOURS[:3].tolist()].index(tuple(value)) for value in reading[1]["values"]]
    for number in range(10):
        maps = [
            LoadMask(told["values"]).transform(
                {"seg_map_path": str(pictures / kind / f"{number}.png"), "seg_fields": []}
            )
            for told, kind in zip(reading, ("masks", "colours"), strict=True)
        ]
        np.testing.assert_array_equal(maps[0]["gt_seg_map"], np.array(order)[maps[1]["gt_seg_map"]])


@pytest.mark.slow
def test_two_specs_stand_beside_each_other_with_their_difference(
    pictures: Path, tmp_path: Path, backbone_file: Path
) -> None:
    softmax = save(tmp_path / "softmax.pth", tiny_vit("softmax"), arch=ARCH, arch_options=OPTIONS)
    for spec, file in (("softmax", softmax), ("entmax15", backbone_file)):
        work_dir = tmp_path / "runs" / spec
        trained(checked(pictures, file, work_dir, *MASKS, "--fast", "--store", str(tmp_path / "f")), work_dir)
    rows = {row.method: row for row in collect([tmp_path / "runs"])}
    (told,) = rows["entmax15"].differences.values()
    assert told["than"] == "softmax" and told["images"] == 2 and not rows["softmax"].differences
    (column,) = rows["softmax"].last
    # The recorded numbers are rounded to two digits.
    assert told["value"] == pytest.approx(rows["entmax15"].last[column] - rows["softmax"].last[column], abs=0.02)
    text = render_table(list(rows.values()))
    assert "garden mIoU [fast]" in text and "paper" not in text and "VOC" not in text
    assert "Δ garden mIoU [fast]: entmax15 - softmax = " in text and "paired bootstrap over 2 images" in text
    assert json.loads(render_table(list(rows.values()), "json"))["rows"]


@pytest.mark.nightly
def test_runs_with_other_settings_are_not_compared(pictures: Path, tmp_path: Path, backbone_file: Path) -> None:
    softmax = save(tmp_path / "softmax.pth", tiny_vit("softmax"), arch=ARCH, arch_options=OPTIONS)
    for spec, file, seed in (("softmax", softmax, "0"), ("entmax15", backbone_file, "1")):
        work_dir = tmp_path / "runs" / spec
        more = ("--fast", "--store", str(tmp_path / "f"), "--seed", seed)
        trained(checked(pictures, file, work_dir, *MASKS, *more), work_dir)
    (told,) = next(row for row in collect([tmp_path / "runs"]) if row.method == "entmax15").differences.values()
    assert "randomness.seed: 0, now 1" in told["why"]


def test_a_broken_file_stops_or_is_left_out(
    pictures: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    (copy / "images" / "3.png").write_bytes((copy / "images" / "3.png").read_bytes()[:200])
    command = ["probe", "folder", "--images", str(copy / "images"), "--masks", str(copy / "masks"), "--check"]
    command += ["--void", "none", "--checkpoint", str(backbone_file), "--work-dir", str(tmp_path / "run")]
    assert main(command) == 2
    told = capsys.readouterr()
    assert str(copy / "images" / "3.png") in told.out and "1 problem(s): correct them, or" in told.err
    assert not (tmp_path / "run").exists()
    assert main([*command, "--skip-bad"]) == 0
    config = Config.fromfile(tmp_path / "run" / "config.py")
    assert config.train_dataloader.dataset.leave_out == ["3"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "nothing tells whether one of them means 'no class'"),
        (("--void", "none", "--train-list", "x"), "--train-list and --val-list go together"),
        (("--void", "none", "--depth", "x"), "--masks and --depth are two probes"),
        (("--void", "none", "--val-share", "2"), "val share 2.0 is not between 0 and 1"),
        (("--void", "none", "--cfg-options", "x"), "--cfg-options 'x' is not KEY=VALUE"),
    ],
)
def test_what_is_missing_is_named(
    more: tuple[str, ...], message: str, pictures: Path, backbone_file: Path, tmp_path: Path, capsys: Any
) -> None:
    command = ["probe", "folder", "--images", str(pictures / "images"), "--masks", str(pictures / "masks"), "--check"]
    assert main([*command, "--checkpoint", str(backbone_file), "--work-dir", str(tmp_path / "run"), *more]) == 2
    assert message in capsys.readouterr().err


def test_the_unit_of_depth_is_asked_for(pictures: Path, backbone_file: Path, capsys: Any) -> None:
    command = ["probe", "folder", "--images", str(pictures / "images"), "--depth", str(pictures / "depth")]
    assert main([*command, "--checkpoint", str(backbone_file), "--check"]) == 2
    assert "nothing tells their unit: give --depth-scale" in capsys.readouterr().err


def test_a_mask_with_another_value_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 9]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png has values that are neither a class nor void: \[9\]"):
        LoadMask([0, 1], [255]).transform({"seg_map_path": str(tmp_path / "m.png"), "seg_fields": []})
    with pytest.raises(ValueError, match="is of grey or palette values; expected a mask in colour"):
        LoadMask([(0, 0, 1)]).transform({"seg_map_path": str(tmp_path / "m.png"), "seg_fields": []})


def test_small_sets_train_for_sixty_passes() -> None:
    assert default_iterations(367, 16, 40_000) == 1400  # 60 * 367 / 16 = 1376
    assert default_iterations(10, 16, 40_000) == 400
    assert default_iterations(100_000, 16, 40_000) == 40_000
