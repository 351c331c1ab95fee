"""Files with changed bytes, given to every reader: each is read, or refused by an error that says so, and none runs."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import attn_plugins
from attn_plugins import checkpoints
from attn_plugins.analysis.boxes import read_coco, read_xml
from attn_plugins.checkpoints import CheckpointError
from attn_plugins.data.images import ImageError, read_image
from attn_plugins.data.layouts.voc import box_xml
from attn_plugins.data.scenes import Box
from attn_plugins.files import read_json, read_lines
from attn_plugins.record import decode, encode
from attn_plugins.results.record import Evaluation, ProbeResult, read_result, write_result
from attn_plugins.trainers.insertions import ApplyError

COUNTS = [200, pytest.param(1000, marks=pytest.mark.nightly)]
ALPHABET = b'{}[]()<>"\'\\/:,=+-. \t\n\x00\x80\xff09azANaN"inf"$'


@dataclass(frozen=True)
class Reader:
    """What reads a file.

    Attributes:
        make: writes a good file of this name.
        read: reads it.
        errors: what may be raised; anything else is a fault of the reader.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = (ValueError,)


STATE = {
    "cls_token": torch.zeros(1, 1, 2),
    "pos_embed": torch.zeros(1, 5, 2),
    "patch_embed.proj.weight": torch.zeros(2, 1, 2, 2),
    "blocks.0.attn.qkv.weight": torch.zeros(6, 2),
    "blocks.0.mlp.fc1.weight": torch.zeros(8, 2),
}
CONTENTS = {"model": STATE, "attn_plugins": {"spec": "entmax15"}, "epoch": 3}


class Runs:
    """Unpickled in full, this makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.proof), "w")


def torch_file(path: Path, zipped: bool = True, **more: Any) -> None:
    torch.save({**CONTENTS, **more}, path, _use_new_zipfile_serialization=zipped)


def identified(path: Path) -> None:
    checkpoints.identify(path)
    checkpoints.recorded_spec(path)


def probe(path: Path) -> None:
    evaluations = (Evaluation("val", 3, {"mIoU": 30.5}), Evaluation("test", 3, {"mIoU": 31.0}))
    backbone = {"plugins": "entmax15", "layers": [3], "cls_token": "none", "checkpoint": "a.pth"}
    write_result(path.parent, ProbeResult("voc2012", 3, backbone, evaluations, {}, {"a": 1}))
    path.write_bytes((path.parent / "probe.json").read_bytes())


def coco(path: Path) -> None:
    images = [{"id": 1, "file_name": "x.png", "height": 8, "width": 8}]
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 1, "bbox": [0, 1, 2.5, 3]}]}))


def picture(form: str, mode: str = "RGB") -> Callable[[Path], None]:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    return lambda path: Image.fromarray(pixels).convert(mode).save(path, form, exif=exif)


def record(path: Path) -> None:
    path.write_bytes(bytes(encode({"spec": "entmax15+registers:num=4"}).tolist()))


def told(path: Path) -> None:
    spec = decode(torch.tensor(list(path.read_bytes()), dtype=torch.uint8))["spec"]
    assert spec == "entmax15+registers:num=4", "a record is read as it was, or refused"


READERS = {
    "checkpoint": Reader(torch_file, identified, (CheckpointError,)),
    "checkpoint, old format": Reader(lambda path: torch_file(path, False), identified, (CheckpointError,)),
    "safetensors": Reader(
        lambda path: save_file(STATE, path, {"attn_plugins": "entmax15"}),
        identified,
        (CheckpointError,),
    ),
    "record": Reader(record, told),
    "probe.json": Reader(probe, read_result),
    "JSON": Reader(coco, read_json),
    "COCO boxes": Reader(coco, read_coco),
    "XML boxes": Reader(
        lambda path: path.write_bytes(box_xml("VOC2012", "x.jpg", (20, 30), [("cat", Box(1, 1, 2, 9, 8))])),
        read_xml,
    ),
    "split": Reader(lambda path: path.write_text("a/b.jpg a/b.png 518.8\n" * 5), read_lines),
    "JPEG": Reader(picture("JPEG"), lambda path: read_image(path, exif=True), (ImageError,)),
    "PNG": Reader(picture("PNG"), lambda path: read_image(path, exif=True), (ImageError,)),
    "TIFF": Reader(picture("TIFF"), lambda path: read_image(path, exif=True), (ImageError,)),
    "WebP": Reader(picture("WEBP"), lambda path: read_image(path, exif=True), (ImageError,)),
    "BMP": Reader(picture("BMP", "P"), lambda path: read_image(path, exif=False), (ImageError,)),
    "spec": Reader(
        lambda path: path.write_text("entmax:alpha=1.3+registers:num=4"),
        lambda path: attn_plugins.spec.parse(path.read_bytes().decode("latin-1")),
    ),
}


def mutated(whole: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, taken out, doubled or put in; or the end cut off."""
    data = bytearray(whole)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + draw.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = bytes(draw.choice(ALPHABET) for _ in range(draw.randrange(1, 9)))
        elif kind == 3:
            data[at:at] = data[max(at - 20, 0) : at]
        elif data:
            data[at % len(data)] = draw.choice([draw.randrange(256), draw.choice(ALPHABET)])
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", READERS)
def test_mutated_files(name: str, count: int, tmp_path: Path, say: Callable[[str], None]) -> None:
    reader, draw, outcomes = READERS[name], random.Random(name), Counter[str]()
    path = tmp_path / ("file.safetensors" if name == "safetensors" else "file")
    reader.make(path)
    whole = path.read_bytes()
    reader.read(path)
    for _ in range(count):
        path.write_bytes(mutated(whole, draw))
        try:
            reader.read(path)
            outcomes["read"] += 1
        except reader.errors as error:
            assert str(error)
            outcomes["refused"] += 1
    say(f"{count} mutated files of {name}: {dict(outcomes)}, 0 other exceptions")
    assert outcomes["refused"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["zip", "old format", "pickle"])
def test_mutated_files_that_would_run_code(kind: str, count: int, tmp_path: Path, say: Callable[[str], None]) -> None:
    path, proof, draw, refused = tmp_path / "file", tmp_path / "ran", random.Random(kind), 0
    if kind == "pickle":
        path.write_bytes(pickle.dumps({**CONTENTS, "more": Runs(proof)}))
    else:
        torch_file(path, kind == "zip", more=Runs(proof))
    whole = path.read_bytes()
    for number in range(count):
        path.write_bytes(mutated(whole, draw) if number else whole)
        try:
            checkpoints.read(path)
        except CheckpointError:
            refused += 1
        assert not proof.exists(), "a file ran code"
    say(f"{count} files with code in them ({kind}), mutated: {refused} refused, 0 executed")
    assert refused


def test_apply_refuses_mutated_files(tmp_path: Path, say: Callable[[str], None]) -> None:
    from helpers.made_up_checkout import UPSTREAM, made_up

    from attn_plugins.trainers.checkout import apply, status

    patch, draw, outcomes = made_up(2), random.Random(0), Counter[str]()
    for file in patch.before:
        (tmp_path / file).parent.mkdir()
    for _ in range(300):
        contents = {file: UPSTREAM[file] for file in patch.before}
        odd = draw.choice(sorted(contents))
        contents[odd] = mutated(contents[odd], draw)
        for file, content in contents.items():
            (tmp_path / file).write_bytes(content)
        try:
            apply(patch, tmp_path)
            assert contents[odd] == UPSTREAM[odd] and status(patch, tmp_path) == "applied"
            outcomes["applied"] += 1
        except ApplyError:
            assert {file: (tmp_path / file).read_bytes() for file in contents} == contents
            outcomes["refused"] += 1
    say(f"300 checkouts with a mutated file: {dict(outcomes)}, 0 half done")
