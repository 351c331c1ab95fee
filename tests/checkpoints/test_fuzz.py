"""Whatever stands in a file: it is read, or a CheckpointError says what is wrong; no other exception gets out."""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attn_plugins.checkpoints import CheckpointError, build, identify, load_backbone, load_backbone_state, recorded_spec
from attn_plugins.checkpoints.building import chosen_plugins

from .models import ARCH, OPTIONS, accelerate, bare, distributed, patched, safetensors, shards, torch_file

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*softmax is assumed"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]
CASES = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MODEL = bare()
READERS: list[Callable[[Path], Any]] = [identify, recorded_spec, load_backbone_state, chosen_plugins]
BUILDERS: Iterator[Callable[[Path], Any]] = itertools.cycle(
    [
        lambda path: build(checkpoint=path),
        lambda path: build(ARCH, path, "softmax", **OPTIONS),
        lambda path: load_backbone(MODEL, path),
    ]
)


def survives(path: Path) -> int:
    """How many of five readers refused the file; whatever else one raises fails the test."""
    refused = 0
    for read in (*READERS, next(BUILDERS)):
        try:
            read(path)
        except CheckpointError as error:
            assert str(error)
            refused += 1
    return refused


def contents() -> dict[str, Any]:
    """A small checkpoint with a record in every place that may hold one."""
    model = patched("entmax15+registers:num=1")
    assert isinstance(model.state_dict(), OrderedDict)
    state: Any = model.state_dict()
    state._metadata[""] = {**state._metadata[""], "attn_plugins": {"spec": "entmax15+registers:num=1"}}
    return {
        "model": state,
        "args": argparse.Namespace(attn_plugins="entmax15+registers:num=1", arch="vit_tiny"),
        "attn_plugins": {"spec": "entmax15+registers:num=1", "arch": ARCH, "arch_options": dict(OPTIONS)},
        "epoch": 3,
    }


WHOLE = contents()
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["entmax15", "sparsemax", "timm/x", "transformers/x", "dinov2/vit_small", "", "+", "a:b=c", "\0"]),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), st.integers(), max_size=2),
    st.sampled_from(
        [
            torch.zeros(()),
            torch.zeros(0),
            torch.zeros(3),
            torch.zeros(2, 2),
            torch.zeros(1, 2, 2),
            torch.zeros(1, 2, 3, 3),
            torch.zeros(2, 2).to_sparse(),
            torch.zeros(5, dtype=torch.complex64),
            torch.full((8,), 200, dtype=torch.uint8),
            torch.zeros(6, dtype=torch.bool),
        ]
    ),
)


def places(mapping: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything that can be changed in nested dicts, and in the metadata of a state dict."""
    found = []
    for key, value in mapping.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += places(value, (*path, key))
            metadata = getattr(value, "_metadata", None)
            if isinstance(metadata, dict):
                found += [(*path, key, "_metadata"), *places(metadata, (*path, key, "_metadata"))]
    return found


def step(target: Any, key: Any) -> Any:
    return target._metadata if key == "_metadata" else target[key]


@pytest.mark.slow
@CASES
@given(data=st.data())
def test_odd_values_anywhere(data: st.DataObject, tmp_path: Path) -> None:
    mutated = copy.deepcopy(WHOLE)
    mutated["model"]._metadata = copy.deepcopy(WHOLE["model"]._metadata)
    told = [place for place in places(mutated) if any("attn_plugins" in str(part) for part in place)]
    for _ in range(data.draw(st.integers(1, 3))):
        everywhere = data.draw(st.booleans())
        place = data.draw(st.sampled_from(places(mutated) if everywhere else [*told, ("args",), ("model",)]))
        target: Any = mutated
        try:
            for key in place[:-1]:
                target = step(target, key)
        except (KeyError, TypeError, AttributeError, IndexError):
            continue  # an earlier change has taken the place away
        kind = data.draw(st.sampled_from(["set", "drop", "rename", "args"]))
        if kind == "args":
            mutated["args"] = argparse.Namespace(attn_plugins=data.draw(ODD))
        elif place[-1] == "_metadata":
            target._metadata = data.draw(ODD)
        elif isinstance(target, dict) and place[-1] in target:
            value = target.pop(place[-1])
            if kind == "set":
                target[place[-1]] = data.draw(ODD)
            elif kind == "rename":
                target[data.draw(st.one_of(st.integers(), st.text(max_size=4), st.just(f"x.{place[-1]}")))] = value
    survives(torch_file(mutated, tmp_path))


@CASES
@given(top=ODD)
def test_files_that_hold_something_else(top: Any, tmp_path: Path) -> None:
    assert survives(torch_file(top, tmp_path)) >= 4  # an empty dict has no spec, and is no error where that is asked


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_bytes_that_were_changed(legacy: bool, tmp_path: Path) -> None:
    small = {"model": {"x": torch.zeros(2)}, "attn_plugins": {"spec": "entmax15"}, "args": argparse.Namespace(a=1)}
    path = tmp_path / "weights.pth"
    torch.save(small, path, _use_new_zipfile_serialization=not legacy)
    refused = mutate(path, 250)
    assert refused


@pytest.mark.parametrize("write", [safetensors, shards, accelerate], ids=["safetensors", "shards", "accelerate"])
def test_bytes_of_safetensors_that_were_changed(write: Any, tmp_path: Path) -> None:
    path = write({"blocks.0.weight": torch.zeros(4), "patch_embed.proj.weight": torch.zeros(1, 1, 2, 2)}, tmp_path)
    files = [path] if path.is_file() else sorted(path.glob("model*"))
    assert sum(mutate(file, 60, path) for file in files)


def test_bytes_of_a_distributed_checkpoint_that_were_changed(tmp_path: Path) -> None:
    folder = distributed({"model": {"x": torch.zeros(4)}, "args": {"attn_plugins": "entmax15"}}, tmp_path)
    assert sum(mutate(file, 150, folder) for file in sorted(folder.iterdir()))


def mutate(file: Path, count: int, read: Path | None = None) -> int:
    """Change some bytes, cut or lengthen the file, `count` times; how often it was refused."""
    draw, whole, refused = random.Random(0), file.read_bytes(), 0
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 1, 2, 8])):
            at = draw.randrange(len(data))
            kind = draw.randrange(4)
            if kind == 0:
                del data[at:]
            elif kind == 1:
                data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
            else:
                data[at] = draw.randrange(256)
            if not data:
                break
        file.write_bytes(data)
        for reader in (identify, recorded_spec):
            try:
                reader(read or file)
            except CheckpointError:
                refused += 1
    file.write_bytes(whole)
    return refused


class Runs:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.proof), "w")


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_a_distributed_checkpoint_that_would_run_code_is_refused_and_does_not_run(file: str, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    contents = {"model": {"x": torch.zeros(4)}, "args": Runs(proof) if file != ".metadata" else 1}
    folder = distributed(contents, tmp_path)
    if file == ".metadata":
        (folder / file).write_bytes(pickle.dumps(Runs(proof)))
    with pytest.raises(CheckpointError, match=r"refused, nothing in it was run|is no torch\.distributed\.checkpoint"):
        recorded_spec(folder)
    assert not proof.exists()


def test_what_a_lightning_checkpoint_asks_for_is_named(tmp_path: Path) -> None:
    class_of_their_own = type("Settings", (), {"__module__": __name__})
    globals()["Settings"] = class_of_their_own
    state = {"state_dict": patched("entmax15").state_dict(), "hyper_parameters": {"config": class_of_their_own()}}
    path = torch_file(state, tmp_path)
    with pytest.raises(CheckpointError, match=r"it asks for [\w.]*test_fuzz\.Settings.*state dict alone"):
        identify(path)


@pytest.mark.parametrize("text", ["[]", "{", '{"architecture": 3}', '{"architecture": "x"}', "[" * 100000, "\ud800"])
def test_odd_configs_beside_weights(text: str, tmp_path: Path) -> None:
    safetensors(patched("entmax15").state_dict(), tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert survives(tmp_path) >= 1


@pytest.mark.slow
@CASES
@given(value=ODD.filter(lambda odd: not isinstance(odd, torch.Tensor | bytes)), name=st.sampled_from(
    ["architecture", "model_type", "model_args", "attn_plugins", "num_classes", "global_pool"]
))  # fmt: skip
def test_odd_settings_in_a_config_beside_weights(value: Any, name: str, tmp_path: Path) -> None:
    if not (tmp_path / "model.safetensors").exists():
        safetensors(patched("entmax15").state_dict(), tmp_path)
    config = {"architecture": "vit_tiny_patch16_224", "model_args": OPTIONS, name: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    survives(tmp_path)


@pytest.mark.parametrize("text", ["student: [", "student: 3", "student:\n  attn_plugins: 3", "- a", "\x00", "&a [*a]"])
def test_odd_configs_of_runs(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    survives(torch_file(bare().state_dict(), tmp_path))
