"""The whole demo, small: real scenes on disk, real probes through mim, and what a second run does."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightly", reason="the demo's pre-training is lightly's: pip install 'attn_plugins[demo]'")
pytest.importorskip("mim", reason="the demo's probes are mmseg's: pip install 'attn_plugins[demo]'")

from PIL import Image

from attn_plugins.cli import main
from attn_plugins.demo import Recipe, Settings, run
from attn_plugins.results import COLUMNS, collect

SETTINGS = Settings(
    methods=("softmax", "entmax15"),
    recipe=Recipe(steps=2, batch_size=4, embed_dim=32, depth=4, num_heads=2, global_size=32, local_size=16),
    num_train=8,
    num_val=4,
    size=(64, 96),
    probe_iters=4,
    column_iters=2,
)


ONE = dataclasses.replace(SETTINGS, methods=("entmax15",))
Finished = tuple[Path, list[dict[str, Any]], list[str], Settings]


# Two methods take twice the time, and what is asked of one is asked of both.
@pytest.fixture(
    scope="module", params=[pytest.param(ONE, id="one"), pytest.param(SETTINGS, id="two", marks=pytest.mark.nightly)]
)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out, settings = tmp_path_factory.mktemp("demo") / "out", request.param
    lines: list[str] = []
    return out, run(out, settings, lines.append, command="attn-plugins demo --out elsewhere"), lines, settings


@pytest.mark.slow
def test_the_table_holds_what_was_measured(finished: Finished) -> None:
    out, rows, lines, settings = finished
    assert [row["method"] for row in rows] == list(settings.methods)
    for row in rows:
        zeros = row["zero_share"]
        assert zeros == 0 if row["method"] == "softmax" else 0 <= zeros < 1  # two steps leave scores nearly equal
    assert rows[0]["step_ratio"] == 1 and all(row["step_ms"] > 0 for row in rows)
    for row in rows:
        record = json.loads((out / "probes" / row["method"] / "voc2012" / "probe.json").read_text())
        assert record["backbone"]["plugins"] == row["method"]
        assert row["mIoU"] == pytest.approx(record["evaluations"][-1]["metrics"]["mIoU"], abs=0.01)
    first = collect([out / "probes"])[0]
    assert all("[train: " in name or "[val: " in name for name in first.last), "rendered scenes are no paper's column"
    assert {name.split(" [")[0]: round(value, 3) for name, value in first.last.items()} == pytest.approx(
        {column.probe: next(r for r in rows if r["method"] == first.method)[column.probe] for column in COLUMNS},
        abs=0.01,
    ), "all seven columns of Table 1"
    assert json.loads((out / "table.json").read_text())["rows"] == rows
    with (out / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == list(settings.methods)
    assert "attn-plugins demo --out elsewhere" in (out / "report.html").read_text()
    text = "\n".join(lines)
    assert "mIoU" in text and "entmax15: voc2012 train" in text and "entmax15: kitti rmse" in text, (
        "progress is shown throughout"
    )


@pytest.mark.slow
def test_the_picture_has_a_row_for_an_image_and_a_column_for_a_model(
    finished: Finished,
) -> None:
    out, _, _, settings = finished
    width, height = Image.open(out / "picture.png").size
    assert width // settings.size[1] == 2 + len(settings.methods)  # input, ground truth, models
    assert height // settings.size[0] == settings.num_val


@pytest.mark.slow
def test_a_second_run_reuses_everything_and_says_the_same(
    finished: Finished,
) -> None:
    out, rows, _, settings = finished
    kept = [*out.rglob("*.pth"), *out.rglob("probe.json"), *out.rglob("*.jpg")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert run(out, settings, lambda line: None) == rows
    assert {path: path.stat().st_mtime_ns for path in kept} == before


@pytest.mark.slow
def test_other_settings_or_a_foreign_folder_are_refused_and_nothing_changes(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _, _, _ = finished
    table = (out / "table.json").read_bytes()
    assert main(["demo", "--out", str(out), "--pretrain", "--steps", "3"]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert (out / "table.json").read_bytes() == table
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no demo run"):
        run(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("bad", [{"methods": ()}, {"methods": ("entmx15",)}, {"probe_iters": 0}])
def test_bad_settings_are_refused_before_anything_is_written(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Settings(**bad)
