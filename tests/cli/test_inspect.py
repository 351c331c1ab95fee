"""attn-plugins inspect."""

from pathlib import Path

import pytest
import torch
from checkpoints import layouts
from checkpoints.models import patched, torch_file

import attn_plugins
from attn_plugins.cli import main


def test_it_prints_what_a_checkpoint_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = layouts.prefixed(layouts.dinov2(chunks=4), "backbone.")
    torch.save({"teacher": state, "attn_plugins": {"spec": "entmax15"}}, tmp_path / "teacher_checkpoint.pth")
    assert main(["inspect", str(tmp_path / "teacher_checkpoint.pth"), "--keys"]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "dinov2",
        "vit_small",
        "14",
        "entmax15",
        "backbone.blocks.1.3.norm1.weight = blocks.3.norm1.weight",
    ):
        assert expected in printed


def test_it_refuses_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert main(["inspect", str(tmp_path / "notes.txt")]) == 2
    assert "not a torch checkpoint" in capsys.readouterr().err


def test_it_tells_layers_with_plugins_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = torch_file(patched("entmax15", [0, 2]).state_dict(), tmp_path)
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "entmax15 (from the layers' records)" in printed
    assert "layers        entmax15: blocks.0.attn, blocks.2.attn" in printed


def test_it_reads_a_folder_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))
    attn_plugins.patch(model, "entmax_alpha").save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for expected in ("transformers", "depth 2", "4 x 4 patches", "entmax_alpha (from the layers' records)"):
        assert expected in printed
