"""probe.json: written whole, read back the same, of the first release too; damage and other runs are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_plugins.results import DataSplit, Evaluation, ProbeResult, find_results, read_result, write_result

IDENTITY = {"arch": "dinov1/vit_small", "plugins": "entmax15", "checkpoint": "c.pth", "sha256": "s", "digest": "d"}
CHOICE = {"layers": [11], "norm": True, "cls_token": "none", "autocast": None}
TRAIN = DataSplit("PascalVOCDataset", "/data/VOC2012", "ImageSets/Segmentation/train.txt", 1464)
RESULT = ProbeResult(
    "voc2012",
    40_000,
    IDENTITY | CHOICE,
    (Evaluation("val", 4000, {"mIoU": 40.5}), Evaluation("test", 0, {"mIoU": 41.0})),
    {"train": TRAIN},
    {"train_cfg.total_batch_size": 8},
)
FIRST_RELEASE = {
    "probe": "voc2012",
    "max_iters": 40,
    "backbone": {k: v for k, v in (IDENTITY | CHOICE).items() if k not in ("digest", "autocast")},
    "evaluations": [{"split": "val", "iter": 20, "metrics": {"mIoU": 43.5, "aAcc": 80}}],
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_result(tmp_path, RESULT)
    assert read_result(tmp_path / "probe.json") == RESULT
    assert [file.name for file in tmp_path.iterdir()] == ["probe.json"]


def test_the_first_releases_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text(json.dumps(FIRST_RELEASE))
    result = read_result(tmp_path / "probe.json")
    assert (result.probe, result.max_iters, result.data, result.overrides) == ("voc2012", 40, {}, None)
    assert result.evaluations == (Evaluation("val", 20, {"mIoU": 43.5, "aAcc": 80.0}),)
    assert result.differences(RESULT) == [], "what it does not say differs from nothing"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"probe": "ade20k"}, "probe: voc2012, now ade20k"),
        ({"backbone": IDENTITY | CHOICE | {"digest": "e"}}, "backbone's digest: 'd', now 'e'"),
        ({"backbone": IDENTITY | CHOICE | {"layers": [5]}}, r"backbone's layers: \[11\], now \[5\]"),
        ({"backbone": IDENTITY | CHOICE | {"autocast": "bf16"}}, "backbone's autocast: None, now 'bf16'"),
        ({"data": {"train": replace(TRAIN, root="/mine")}}, "train data: .*VOC2012.*, now .*in /mine"),
        ({"data": {"train": replace(TRAIN, split="trainaug.txt", images=10582)}}, "now trainaug.txt"),
        ({"overrides": {}}, "train_cfg.total_batch_size: 8, now 'default'"),
    ],
)
def test_another_run_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RESULT.continued_by(replace(RESULT, evaluations=(), **change))


def test_a_moved_checkpoint_is_the_same_run_and_a_test_adds_its_data() -> None:
    val = replace(TRAIN, split="ImageSets/Segmentation/val.txt", images=1449)
    moved = IDENTITY | CHOICE | {"checkpoint": "elsewhere/c.pth", "sha256": "repacked"}
    test = ProbeResult("voc2012", 7, moved, (), {"test": val}, {"train_cfg.max_iters": 7})
    both = RESULT.continued_by(test)
    assert both == replace(RESULT, backbone=moved, data={"train": TRAIN, "test": val})


def test_repeated_validations_are_replaced() -> None:
    later = RESULT.with_evaluation(Evaluation("val", 8000, {"mIoU": 1.0}))
    again = later.with_evaluation(Evaluation("val", 4000, {"mIoU": 2.0}))
    assert [e.iteration for e in later.evaluations_of("val")] == [4000, 8000]
    assert again.evaluations == (RESULT.evaluations[1], Evaluation("val", 4000, {"mIoU": 2.0}))


PLACES = ["probe", "max_iters", "backbone", "evaluations", "data", "overrides", None]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_damage_is_one_error_that_names_the_file(place: str | None, value: Any, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("r")
    write_result(folder, RESULT)
    file = folder / "probe.json"
    contents = value if place is None else json.loads(file.read_text()) | {place: value}
    file.write_text(json.dumps(contents))
    try:
        assert isinstance(read_result(file), ProbeResult)
    except ValueError as error:
        assert str(file) in str(error) and "is damaged" in str(error)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000], ids=["empty", "half", "binary", "deep"])
def test_files_that_are_no_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"probe\.json is damaged"):
        read_result(tmp_path / "probe.json")


def test_results_are_found_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_result(tmp_path / "a", RESULT)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert len(find_results([tmp_path, tmp_path / "a", tmp_path / "b"])) == 1
    with pytest.raises(ValueError, match=r"no probe\.json below"):
        find_results([tmp_path / "nowhere"])
