"""The table: best and last of every finished probe, gaps as gaps, the paper's figures beside."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attn_plugins.cli import main
from attn_plugins.results import COLUMNS, PAPER, collect, render, write_images


def write(
    folder: Path,
    probe: str,
    spec: str,
    values: list[tuple[int, float]],
    wanted: int = 40,
    more: dict[str, Any] | None = None,
    **other: Any,
) -> Path:
    metric = next(column.metric for column in COLUMNS if column.probe == probe)
    identity = {
        "sha256": f"sha-{spec}",
        "plugins": spec,
        "checkpoint": f"{spec}.pth",
        "arch": "dinov1/vit_small",
    } | other
    evaluations = [{"split": "val", "iter": i, "metrics": {metric: v, "other": 0.0}} for i, v in values]
    record = {"probe": probe, "max_iters": wanted, "backbone": identity, "evaluations": evaluations} | (more or {})
    folder.mkdir(parents=True)
    (folder / "probe.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write(tmp_path / "a/voc", "voc2012", "softmax", [(20, 43.5), (40, 42.25)])
    write(tmp_path / "a/nyu", "nyuv2", "softmax", [(20, 0.9), (40, 0.95)])
    write(tmp_path / "b/voc", "voc2012", "entmax15", [(20, 48.0)])
    return tmp_path


def test_best_and_last(runs: Path) -> None:
    softmax, entmax = collect([runs / "a", runs / "b"])
    assert (softmax.best, softmax.last) == ({"voc2012": 43.5, "nyuv2": 0.9}, {"voc2012": 42.25, "nyuv2": 0.95})
    assert entmax.unfinished == {"voc2012": (20, 40)} and not softmax.unfinished


def test_markdown_has_gaps_stars_and_the_paper(runs: Path) -> None:
    lines = render(collect([runs])).splitlines()
    assert lines[2] == "| softmax, best | - | 43.50 | - | - | 0.900 | - | - |"
    assert lines[3] == "| softmax, last | - | 42.25 | - | - | 0.950 | - | - |"
    assert lines[4] == "| entmax15, best | - | 48.00* | - | - | - | - | - |"
    assert "| paper: Entmax-1.5 | 70.06 | 48.78 | 21.97 | 37.87 | 0.829 | 0.669 | 6.739 |" in lines
    assert "20 of 40 iterations" in lines[-1]


def test_the_other_forms_agree(runs: Path) -> None:
    rows = collect([runs])
    markdown = [[cell.strip() for cell in line.strip("|").split("|")] for line in render(rows).splitlines()[:10]]
    del markdown[1]
    assert list(csv.reader(io.StringIO(render(rows, "csv")))) == markdown
    latex = [line for line in render(rows, "latex").splitlines() if line.endswith(r"\\")]
    assert [line.count("&") for line in latex] == [7] * 9 and "48.00*" in latex[3]
    loaded = json.loads(render(rows, "json"))
    assert loaded["rows"][0]["best"]["voc2012"] == 43.5
    assert list(loaded["paper"]["CLS baseline"].values()) == list(PAPER["CLS baseline"])
    assert not any("paper" in line for line in render(rows, paper=False).splitlines())


def test_backbones_with_one_spec_are_told_apart_by_file(runs: Path) -> None:
    write(runs / "c/voc", "voc2012", "softmax", [(40, 1.0)], sha256="other", checkpoint="later.pth")
    assert [row.method for row in collect([runs])] == ["softmax (softmax.pth)", "entmax15", "softmax (later.pth)"]


def test_what_is_refused(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"no probe\.json below"):
        collect([runs / "nowhere"])
    write(runs / "d", "voc2012", "softmax", [(40, 1.0)])
    with pytest.raises(ValueError, match="are both voc2012"):
        collect([runs])
    (runs / "d/probe.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        collect([runs / "d"])
    with pytest.raises(ValueError, match="format 'html'"):
        render([], "html")


def test_the_command_prints_and_writes(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert printed == render(collect([runs]))
    assert main(["table", str(runs), "--format", "csv", "--out", str(runs / "t.csv")]) == 0
    assert (runs / "t.csv").read_text() == render(collect([runs]), "csv")
    assert main(["table", str(runs / "nowhere")]) == 2


def split(name: str, images: int) -> dict[str, Any]:
    path = f"ImageSets/Segmentation/{name}.txt"
    return {"dataset": "PascalVOCDataset", "root": "/data/VOC2012", "split": path, "images": images}


def test_other_data_has_a_column_of_its_own(tmp_path: Path) -> None:
    val = split("val", 1449)
    for name, train, miou in (("voc", split("train", 1464), 40.0), ("aug", split("trainaug", 10582), 50.0)):
        more = {"data": {"train": train, "val": val}, "overrides": {}}
        write(tmp_path / name, "voc2012", "softmax", [(40, miou)], more=more)
    own = {"data": {"train": split("train", 7), "val": split("val", 3)}, "overrides": {}}
    write(tmp_path / "own", "voc2012", "softmax", [(40, 99.0)], more=own)
    (row,) = collect([tmp_path])
    assert row.best == {
        "voc2012": 40.0,
        "voc2012 [train: trainaug, 10582]": 50.0,
        "voc2012 [train: train, 7; val: val, 3]": 99.0,
    }
    head, _, best, *_ = render([row]).splitlines()
    titles = ["VOC mIoU [train: trainaug, 10582] ↑", "VOC mIoU [train: train, 7; val: val, 3] ↑"]
    cells = dict(zip(*([c.strip() for c in line.strip("|").split("|")] for line in (head, best)), strict=True))
    assert [cells["VOC mIoU ↑"], *(cells[title] for title in titles)] == ["40.00", "50.00", "99.00"]


def test_other_settings_and_an_assumed_spec_are_said(tmp_path: Path) -> None:
    write(
        tmp_path / "a",
        "voc2012",
        "softmax",
        [(40, 40.0)],
        more={"overrides": {"train_cfg.max_iters": 40}},
        plugins_source="assumed",
    )
    lines = render(collect([tmp_path])).splitlines()
    assert lines[2].startswith("| softmax (assumed), best | - | 40.00† |")
    assert lines[-1] == "† softmax (assumed), voc2012: train_cfg.max_iters=40."


def test_the_table_needs_no_mmengine(runs: Path) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('mmengine', 'mmcv', 'mmseg', 'numpy')))"
    code = f"{blocked}; from attn_plugins.cli import main; raise SystemExit(main(['table', {str(runs)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, render(collect([runs]))), done.stderr


def test_accuracies_stand_beside_each_other_with_mcnemars_test(tmp_path: Path) -> None:
    """Predictions right or wrong image by image, as an ImageNet probe keeps them."""
    for spec, right in (("softmax", range(5, 50)), ("entmax15", range(80))):
        folder = write(tmp_path / spec, "imagenet", spec, [(40, float(len(right)))])
        write_images(folder, 40, {f"/val/{i}.JPEG": 100.0 * (i in right) for i in range(100)})
    text = render(collect([tmp_path]))
    assert "Δ ImageNet top-1: entmax15 - softmax = +35.00 [" in text
    assert "over 100 images; 35 images right here alone, 0 there alone, McNemar p < 0.001, last evaluation." in text
    found = json.loads(render(collect([tmp_path]), "json"))["rows"]
    (told,) = [row["differences"]["imagenet"] for row in found if row["differences"]]
    assert (told["gained"], told["lost"], told["p"]) == (35, 0, 2 * 0.5**35)
