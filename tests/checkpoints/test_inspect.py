"""attn-plugins inspect."""

import torch

from attn_plugins.cli import main

from . import layouts


def test_it_prints_what_a_checkpoint_is(tmp_path, capsys):
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


def test_it_refuses_what_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("hello")
    assert main(["inspect", str(tmp_path / "notes.txt")]) == 2
    assert "not a torch checkpoint" in capsys.readouterr().err
