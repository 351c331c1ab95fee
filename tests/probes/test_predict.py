"""A trained probe predicts: the same as mmseg's inference API, at any size, wherever its backbone lies now."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmseg.apis import inference_model, init_model
from PIL import Image

from attn_plugins.checkpoints import save
from attn_plugins.cli import main
from attn_plugins.probes import load
from attn_plugins.probes.draw import legend, overlay, stored
from attn_plugins.probes.run.runner import build_runner
from attn_plugins.probes.told import META_KEY, ProbeRecord

from .conftest import ARCH, OPTIONS, tiny_vit
from .running import options


@pytest.fixture(scope="module")
def folder(backbone_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of its own, which tests may move."""
    root = tmp_path_factory.mktemp("predict")
    shutil.copy(backbone_file, root / "vit.pth")
    return root


@pytest.fixture(scope="module")
def photo(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8).repeat(11, 0).repeat(11, 1)
    Image.fromarray(pixels).save(folder / "mine.png")
    return folder / "mine.png"


def trained(probe: str, folder: Path, roots: dict[str, Path]) -> Any:
    runner = build_runner(probe, options(probe, folder / "vit.pth", roots, 2, 2), folder / probe)
    runner.train()
    return runner


@pytest.fixture(scope="module")
def segmenter(folder: Path, roots: dict[str, Path]) -> Any:
    return trained("voc2012_linear", folder, roots)


@pytest.fixture(scope="module")
def deep(folder: Path, roots: dict[str, Path]) -> Any:
    return trained("nyuv2_linear4_depth", folder, roots)


@pytest.mark.slow
def test_masks_are_those_of_mmseg(segmenter: Any, photo: Path) -> None:
    work_dir = Path(segmenter.work_dir)
    model = init_model(copy.deepcopy(segmenter.cfg), str(work_dir / "iter_2.pth"), device="cpu")
    expected = inference_model(model, str(photo)).pred_sem_seg.data[0].numpy()
    probe = load(work_dir, device="cpu")
    found = probe.predict(photo)
    assert found.mask is not None and found.mask.shape == (66, 99)
    np.testing.assert_array_equal(found.mask, expected)
    for same in (Image.open(photo), np.asarray(Image.open(photo)), str(photo)):
        np.testing.assert_array_equal(probe.predict(same).mask, expected)
    assert probe.record.classes[15] == "person" and len(probe.record.palette) == 21


@pytest.mark.slow
def test_depth_is_that_of_mmseg(deep: Any, photo: Path) -> None:
    work_dir = Path(deep.work_dir)
    model = init_model(copy.deepcopy(deep.cfg), str(work_dir / "iter_2.pth"), device="cpu")
    expected = inference_model(model, str(photo)).pred_depth_map.data[0].numpy()
    probe = load(work_dir, device="cpu")
    found = probe.predict(photo)
    assert found.depth is not None
    np.testing.assert_allclose(found.depth, expected, rtol=1e-5, atol=1e-5)
    saved = np.asarray(stored(found, probe.record))
    assert saved.dtype == np.uint16
    np.testing.assert_allclose(saved / 1000, expected, atol=6e-4)
    assert overlay(found, probe.record).width == 99 and legend(probe.record) is None


@pytest.mark.slow
def test_depth_of_a_large_image_is_predicted_at_a_smaller_size(deep: Any, photo: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("attn_plugins.probes.predict._MOST_PIXELS", 3000)
    found = load(deep.work_dir, device="cpu").predict(photo)
    assert found.depth is not None and found.depth.shape == (66, 99)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (7, 200), (300, 20)])
def test_images_of_any_size(segmenter: Any, size: tuple[int, int]) -> None:
    found = load(segmenter.work_dir, device="cpu").predict(np.zeros((*size, 3), np.uint8))
    assert found.mask is not None and found.mask.shape == size


def test_what_is_no_image_is_refused(segmenter: Any) -> None:
    probe = load(segmenter.work_dir, device="cpu")
    wrongs: list[Any] = [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"an image is \[H, W, 3\], RGB, uint8; this is"):
            probe.predict(wrong)


@pytest.mark.slow
def test_the_best_classifier_of_the_grid_predicts(folder: Path, roots: dict[str, Path], photo: Path) -> None:
    probe = "imagenet_linear"
    settings = options(probe, folder / "vit.pth", roots, 2, 4) | {"model.num_classes": 20}
    runner = build_runner(probe, settings, folder / probe)
    runner.train()
    predictor = load(folder / probe, device="cpu")
    metrics = json.loads((folder / probe / "probe.json").read_text())["evaluations"][-1]["metrics"]
    assert predictor.classifier is not None
    assert metrics[f"top1_{predictor.classifier}"] == metrics["top1"]
    scores = predictor.predict(photo).scores
    assert scores is not None and len(scores) == 20 and sum(scores.values()) == pytest.approx(1, abs=1e-5)
    (folder / probe / "probe.json").rename(folder / probe / "away.json")
    with pytest.raises(ValueError, match="tells which of the classifiers is best"):
        load(folder / probe)


def test_a_backbone_that_was_moved_is_found_by_its_bytes(
    segmenter: Any, folder: Path, photo: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    head = tmp_path / "elsewhere" / "head.pth"
    head.parent.mkdir()
    shutil.copy(Path(segmenter.work_dir) / "iter_2.pth", head)
    expected = load(head, device="cpu").predict(photo).mask
    (folder / "vit.pth").rename(folder / "gone")
    try:
        monkeypatch.chdir(tmp_path)
        save(tmp_path / "vit.pth", tiny_vit("entmax15", seed=9), arch=ARCH, arch_options=OPTIONS)  # of the same name
        with pytest.raises(ValueError, match=r"is not where it was .*name it with --checkpoint FILE"):
            load(head)
        shutil.copy(folder / "gone", tmp_path / "other.pth")
        np.testing.assert_array_equal(load(head, device="cpu").predict(photo).mask, expected)
        with pytest.raises(ValueError, match="this head belongs to another backbone"):
            load(head, checkpoint=tmp_path / "vit.pth")
    finally:
        (folder / "gone").rename(folder / "vit.pth")


def test_a_bundle_needs_nothing_beside_it(segmenter: Any, folder: Path, photo: Path, tmp_path: Path) -> None:
    expected = load(segmenter.work_dir, device="cpu").predict(photo).mask
    bundle = tmp_path / "probe.safetensors"
    assert main(["predict", segmenter.work_dir, "--bundle", str(bundle), "--device", "cpu"]) == 0
    (folder / "vit.pth").rename(folder / "gone")
    try:
        probe = load(bundle, device="cpu")
    finally:
        (folder / "gone").rename(folder / "vit.pth")
    np.testing.assert_array_equal(probe.predict(photo).mask, expected)
    assert probe.record.backbone["plugins"] == "entmax15"
    bundle.write_bytes(bundle.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"probe\.safetensors"):
        load(bundle)


def test_the_command_writes_what_it_says(
    segmenter: Any, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    images = tmp_path / "in"
    (images / "a").mkdir(parents=True)
    shutil.copy(photo, images / "a" / "1.png")
    (images / "broken.png").write_bytes(b"x")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photo}\n"))
    out = tmp_path / "out"
    assert main(["predict", segmenter.work_dir, str(images), "-", "--out", str(out), "--device", "cpu"]) == 1
    told = capsys.readouterr()
    assert "broken.png" in told.err and "1 image(s) could not be read" in told.err
    assert [json.loads(line)["out"] for line in told.out.splitlines()] == [str(out / "a" / "1"), str(out / "mine")]
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert names == {"legend.png"} | {f"{n}{e}" for n in ("a/1", "mine") for e in (".png", "_overlay.png", ".json")}
    saved = Image.open(out / "mine.png")
    assert saved.mode == "P" and saved.size == (99, 66)
    numbers = json.loads((out / "mine.json").read_text())
    mask = np.asarray(saved)
    classes = load(segmenter.work_dir, device="cpu").record.classes
    for name, told_of in numbers["classes"].items():
        assert told_of["pixels"] == (mask == classes.index(name)).sum()
    assert sum(value["share"] for value in numbers["classes"].values()) == pytest.approx(1)
    assert Image.open(out / "mine_overlay.png").height > 66


def test_masks_are_saved_in_the_values_they_were_trained_with(segmenter: Any, photo: Path) -> None:
    found = load(segmenter.work_dir, device="cpu").predict(photo)
    assert found.mask is not None
    record = ProbeRecord("segmentation", "x", {}, {}, [], [], classes=["a", "b"], palette=[[9, 0, 0], [0, 9, 0]])
    mask = np.array([[0, 1, 1]], np.uint8)
    prediction = type(found)(np.zeros((1, 3, 3), np.uint8), mask=mask)
    for values, expected in (((), [[0, 1, 1]]), ((3, 200), [[3, 200, 200]]), (((9, 0, 0), (0, 9, 0)), [[0, 1, 1]])):
        picture = stored(prediction, ProbeRecord(**{**vars(record), "values": values}))
        assert picture is not None
        np.testing.assert_array_equal(np.asarray(picture), expected)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB"))[0], [[9, 0, 0], [0, 9, 0], [0, 9, 0]])


def test_heads_without_a_record_are_told_apart(segmenter: Any, tmp_path: Path) -> None:
    contents = torch.load(Path(segmenter.work_dir) / "iter_2.pth", weights_only=False)
    del contents["meta"][META_KEY]
    torch.save(contents, tmp_path / "old.pth")
    with pytest.raises(ValueError, match="written by an earlier release"):
        load(tmp_path / "old.pth")
    contents["meta"][META_KEY] = '{"task": "magic"}'
    torch.save(contents, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth: what it says of its probe is damaged"):
        load(tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="holds no checkpoint of a probe"):
        load(tmp_path)
