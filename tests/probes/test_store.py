"""The feature store: what is written is found again, by content alone, and a damaged file is a miss."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attn_plugins.files import sha256
from attn_plugins.probes.store import FeatureStore, key_of


@pytest.fixture
def filled(tmp_path: Path) -> tuple[FeatureStore, str, dict[str, torch.Tensor]]:
    store = FeatureStore(tmp_path / "features")
    tensors = {"patches": torch.randn(8, 3, 5).half(), "cls": torch.randn(8)}
    key = key_of(image="a", layer=3)
    store.put(key, tensors)
    return store, key, tensors


def test_an_entry_is_found_as_it_was_written(filled: tuple[FeatureStore, str, dict[str, torch.Tensor]]) -> None:
    store, key, tensors = filled
    for found in (store.get(key), load_file(store.path(key))):  # safetensors' own reader, too
        assert found is not None and found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert store.intact(key)
    assert not list(store.folder.rglob("*.partial"))


def test_what_is_not_there_is_a_miss(filled: tuple[FeatureStore, str, dict[str, torch.Tensor]]) -> None:
    store, _, _ = filled
    other = key_of(image="a", layer=4)
    assert store.get(other) is None and not store.intact(other)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "folder", "of another key"])
def test_a_damaged_file_is_a_miss(filled: tuple[FeatureStore, str, dict[str, torch.Tensor]], damage: str) -> None:
    store, key, tensors = filled
    path = store.path(key)
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "of another key":
        other = key_of(image="b", layer=3)
        store.put(other, tensors)
        path.write_bytes(store.path(other).read_bytes())
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"x" * 500}[damage])
    assert store.get(key) is None and not store.intact(key)


def test_a_flipped_bit_is_seen_and_written_over(filled: tuple[FeatureStore, str, dict[str, torch.Tensor]]) -> None:
    store, key, tensors = filled
    content = bytearray(store.path(key).read_bytes())
    content[-5] ^= 1
    store.path(key).write_bytes(content)
    assert not store.intact(key)
    store.put(key, tensors)
    assert store.intact(key)


def test_half_precision_is_kept_as_it_is(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.put("k" * 64, {"x": torch.randn(3, 2).bfloat16(), "n": torch.tensor(3)})
    found = store.get("k" * 64)
    assert store.intact("k" * 64) and found is not None and found["x"].dtype == torch.bfloat16


def test_keys_are_digests_of_content_and_of_nothing_else(tmp_path: Path) -> None:
    assert key_of(a=1, b=[2]) == key_of(b=[2], a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a="1"), key_of(a=[1]), key_of()}) == 6
    assert key_of() == hashlib.sha256(json.dumps({"version": 2}).encode()).hexdigest()
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"same")
    assert sha256(tmp_path / "one") == sha256(tmp_path / "two") == hashlib.sha256(b"same").hexdigest()
