"""A backbone's digest is equal where features are equal, whatever the source, and differs where they differ."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_plugins.checkpoints import build, save

from .models import ARCH, OPTIONS, bare, patched, prefixed, torch_file

pytestmark = pytest.mark.filterwarnings("ignore:.*softmax is assumed")


def digest(*args: Any, **options: Any) -> str:
    out: str = build(*args, **options)[1]["digest"]
    return out


def test_weights_that_are_equal_have_one_digest_wherever_they_lie(tmp_path: Path) -> None:
    model = patched("entmax15")
    ours = save(tmp_path / "ours.pth", model, arch=ARCH, arch_options=OPTIONS)
    other = torch_file(prefixed(dict(model.state_dict()), "module."), tmp_path)
    moved = shutil.copy(ours, tmp_path / "moved.pth")
    digests = {digest(checkpoint=ours), digest(ARCH, other, **OPTIONS), digest(checkpoint=moved)}
    assert len(digests) == 1


def test_anything_that_features_depend_on_changes_it(tmp_path: Path) -> None:
    path = torch_file(bare().state_dict(), tmp_path)
    (tmp_path / "other").mkdir()
    other = torch_file(bare(seed=1).state_dict(), tmp_path / "other")
    digests = [
        digest(ARCH, path, **OPTIONS),
        digest(ARCH, other, **OPTIONS),
        digest(ARCH, path, "entmax15", **OPTIONS),
        digest(ARCH, path, **OPTIONS, num_heads=6),
        digest(ARCH, path, **OPTIONS, act_layer="relu"),
        digest(ARCH, path, **OPTIONS, act_layer=torch.nn.SiLU),
        digest(ARCH, path, **OPTIONS, no_embed_class=False, dynamic_img_size=False),
    ]
    assert len(set(digests)) == len(digests)


def test_random_weights_have_a_digest_of_their_own() -> None:
    def seeded(seed: int) -> str:
        torch.manual_seed(seed)
        return digest(ARCH, **OPTIONS)

    assert seeded(0) == seeded(0) != seeded(1)


def test_folders_of_transformers_go_by_their_weights_and_not_by_their_names(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    def saved(seed: int, folder: str) -> str:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
        config = transformers.Dinov2Config(**sizes, image_size=56, patch_size=14)
        transformers.Dinov2Model(config).save_pretrained(tmp_path / folder)
        return digest(f"transformers/{tmp_path / folder}")

    assert saved(0, "a") == saved(0, "b") != saved(1, "a")
