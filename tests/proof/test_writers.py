"""Every writer, interrupted anywhere, on a full disk, and killed: what it writes is whole, or what was there before."""

from __future__ import annotations

import csv
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.faults import every_fault
from helpers.kills import killed
from matplotlib.figure import Figure
from PIL import Image

from attn_plugins import checkpoints, files
from attn_plugins.analysis.exhibit import Exhibit, Panel
from attn_plugins.data.layouts.voc import write_voc
from attn_plugins.results.record import Evaluation, ProbeResult, read_result, write_result

Say = Callable[[str], None]


@dataclass(frozen=True)
class Writer:
    """One thing that is written.

    Attributes:
        write: writes version 1 or 2 below a folder.
        read: the version that lies there, 0 for none; raises where it is not whole.
    """

    write: Callable[[Path, int], object]
    read: Callable[[Path], int]


def write_state(folder: Path, version: int) -> None:
    model = torch.nn.Linear(40, 40)
    with torch.no_grad():
        model.weight.fill_(version)
    checkpoints.save(folder / "model.pth", model, arch="timm/x")


def read_state(folder: Path) -> int:
    if not (folder / "model.pth").exists():
        return 0
    weight = checkpoints.read(folder / "model.pth")["model"]["weight"]
    assert weight.shape == (40, 40) and (weight == weight[0, 0]).all()
    return int(weight[0, 0])


def write_probe(folder: Path, version: int) -> None:
    many = tuple(Evaluation("val", n, {"mIoU": float(version)}) for n in range(40))
    write_result(folder, ProbeResult("voc2012", 1, {"plugins": "softmax"}, many, {}, None))


def read_probe(folder: Path) -> int:
    if not (folder / "probe.json").exists():
        return 0
    result = read_result(folder / "probe.json")
    found = {evaluation.metrics["mIoU"] for evaluation in result.evaluations}
    assert len(found) == 1 and len(result.evaluations) == 40
    return int(found.pop())


def write_figure(folder: Path, version: int) -> None:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, version])
    Exhibit("x", "", "", "", (Panel("", "", "", figure),), [{"version": version}] * 40).write(folder)


def read_figure(folder: Path) -> int:
    if (folder / "x.png").exists():
        Image.open(folder / "x.png").load()
    if not (folder / "x.csv").exists():
        return 0
    rows = [row["version"] for row in csv.DictReader((folder / "x.csv").open())]
    assert len(rows) == 40 and len(set(rows)) == 1
    return int(rows[0])


def write_scenes(folder: Path, version: int) -> None:
    write_voc(folder / "scenes", 2, 2, 0, (32, 48))


def read_scenes(folder: Path) -> int:
    root = folder / "scenes" / "VOCdevkit" / "VOC2012"
    if not root.exists():
        return 0
    pictures = [*root.glob("JPEGImages/*.jpg"), *root.glob("SegmentationClass/*.png")]
    assert len(pictures) == 8
    for picture in pictures:
        Image.open(picture).load()
    return 1


WRITERS = {
    "text": Writer(
        lambda folder, version: files.write_text(folder / "x", str(version) * 5000),
        lambda folder: int((folder / "x").read_text()[0]) if whole(folder / "x") else 0,
    ),
    "checkpoint": Writer(write_state, read_state),
    "probe.json": Writer(write_probe, read_probe),
    "figure": Writer(write_figure, read_figure),
    "scenes": Writer(write_scenes, read_scenes),
}


def whole(path: Path) -> bool:
    if path.exists():
        assert path.stat().st_size == 5000 and len(set(path.read_bytes())) == 1
    return path.exists()


every_writer = pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)


# A figure, of two files, is drawn anew for each of 200 faults; a full disk, below, it meets in the ordinary tier.
@pytest.mark.parametrize(
    "name", ["text", "checkpoint", "probe.json", pytest.param("figure", marks=pytest.mark.nightly)]
)
def test_a_fault_anywhere_leaves_the_one_or_the_other(name: str, tmp_path: Path, say: Say) -> None:
    writer, count = WRITERS[name], 0
    for before in (0, 1):

        def start(before: int = before) -> None:
            for left in tmp_path.iterdir():
                left.unlink()
            if before:
                writer.write(tmp_path, before)

        for fault in every_fault(start, lambda: writer.write(tmp_path, 2), files):
            count += 1
            assert writer.read(tmp_path) in (before, 2), fault
            assert not list(tmp_path.glob(".*")), fault
    say(f"faults in writing {name}: {count}, 0 half done")
    assert count >= 50


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may grow beyond `room` bytes: writing fails in its middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@every_writer
@pytest.mark.parametrize("room", [0, 100, 300])
def test_a_full_disk_leaves_what_was_there(writer: Writer, room: int, tmp_path: Path) -> None:
    before = 0
    if writer is not WRITERS["scenes"]:
        writer.write(tmp_path, 1)
        before = 1
    with pytest.raises((OSError, RuntimeError)), full_disk(room):  # RuntimeError: torch's of its zip file
        writer.write(tmp_path, 2)
    assert writer.read(tmp_path) == before
    assert not [left for left in tmp_path.glob(".*") if not left.name.endswith(".lock")]
    writer.write(tmp_path, 2)
    assert writer.read(tmp_path) in (1, 2)


@every_writer
@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.nightly)])
def test_kill_minus_9(writer: Writer, kills: int, tmp_path: Path, say: Say) -> None:
    (tmp_path / "measured").mkdir()
    begun = time.monotonic()
    writer.write(tmp_path / "measured", 1)
    took = max(time.monotonic() - begun, 0.01)
    draw, counts = random.Random(0), Counter[str]()
    for number in range(kills):
        folder = tmp_path / str(number)
        folder.mkdir()

        def again(folder: Path = folder) -> None:
            while True:
                writer.write(folder, 1)
                writer.write(folder, 2)

        counts["killed"] += killed(again, 0.05 + 1.5 * took, draw)
        counts[str(writer.read(folder) or "none")] += 1
        writer.write(folder, 1)  # and what is left is in nobody's way
        assert writer.read(folder) == 1
    say(f"kill -9 while writing: {dict(counts)}, 0 half done")
    assert counts["killed"] == kills
