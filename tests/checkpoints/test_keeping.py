"""What a file says of its parent is read from wherever it stands, and damaged files are named."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from attn_plugins.checkpoints import CheckpointError, parent_of

TENSORS = {"weight": torch.ones(2)}


@pytest.mark.parametrize(
    "metadata", [None, "text", {"": None}, {"": {"attn_plugins": "text"}}, {"": {"attn_plugins": {"spec": "softmax"}}}]
)
def test_files_of_others_have_no_parent(metadata: Any, tmp_path: Path) -> None:
    state: Any = OrderedDict(TENSORS)
    state._metadata = metadata
    torch.save(state, tmp_path / "flat.pth")
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert parent_of(tmp_path / "flat.pth") is None and parent_of(tmp_path / "x.safetensors") is None


def test_a_parent_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "parent": 3}, tmp_path / "odd.pt")
    assert parent_of(tmp_path / "odd.pt") is None  # not ours, so it says nothing of what we mean
    torch.save({"model": TENSORS, "attn_plugins": {"spec": "softmax"}, "parent": 3}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt: its parent is int: 3"):
        parent_of(tmp_path / "odd.pt")
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"attn_plugins": "{"})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: what its header tells"):
        parent_of(tmp_path / "x.safetensors")
