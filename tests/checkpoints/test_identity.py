"""What a file is, from the layouts that the trainers write."""

import argparse
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch

from attn_plugins.checkpoints import CheckpointError, agree, identify

from . import layouts


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(contents: object, name: str = "checkpoint.pth") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(contents, path)
        return path

    return write


def dino_checkpoint(spec: str | None = "entmax15") -> dict[str, Any]:
    """As main_dino.py writes it: a Namespace, a Path (submitit), numpy learning rates."""
    state = layouts.backbone()
    args = argparse.Namespace(arch="vit_small", patch_size=16, output_dir=PosixPath("/out"))
    if spec is not None:
        args.attn_plugins = spec
    heads = {"head.mlp.0.weight": torch.randn(3, 384)}
    return {
        "student": {**layouts.prefixed(state, "module.backbone."), **layouts.prefixed(heads, "module.")},
        "teacher": {**layouts.prefixed(state, "backbone."), **heads},
        "optimizer": {"param_groups": [{"lr": np.float64(1e-3), "weight_decay": np.float32(0.04)}]},
        "epoch": 1,
        "args": args,
        "dino_loss": {"center": torch.zeros(1, 8)},
    }


def test_dinov1_checkpoint_says_its_architecture_spec_and_teacher_keys(written: Callable[..., Path]) -> None:
    info = identify(written(dino_checkpoint()))
    assert (info.codebase, info.architecture, info.patch_size, info.registers) == ("dino", "vit_small", 16, 0)
    assert (info.spec, info.spec_source) == ("entmax15", "args")
    assert (info.section, info.prefix) == ("teacher", "backbone.")
    assert set(info.keys.values()) == set(layouts.backbone())
    assert info.others == (("student", "module.backbone."),)


def test_the_student_is_had_by_name(written: Callable[..., Path]) -> None:
    info = identify(written(dino_checkpoint()), key="student")
    assert (info.section, info.prefix) == ("student", "module.backbone.")


def test_a_key_that_picks_nothing_lists_what_there_is(written: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"module\.backbone\..*'ema'"):
        identify(written(dino_checkpoint()), key="ema")


def test_a_file_that_says_no_spec_has_none(written: Callable[..., Path]) -> None:
    assert identify(written(dino_checkpoint(spec=None))).spec is None


@pytest.mark.parametrize("place", ["eval/training_9/teacher_checkpoint.pth", "teacher_checkpoint.pth"])
def test_dinov2_teacher_reads_the_config_of_its_run(written: Callable[..., Path], tmp_path: Path, place: str) -> None:
    (tmp_path / "config.yaml").write_text("student:\n  arch: vit_small\n  attn_plugins: entmax15\n")
    state = layouts.prefixed(layouts.dinov2(chunks=4), "backbone.")
    info = identify(written({"teacher": {**state, "dino_head.last_layer.weight": torch.randn(2, 2)}}, place))
    assert (info.codebase, info.architecture, info.patch_size, info.registers) == (
        "dinov2",
        "vit_small",
        14,
        4,
    )
    assert info.spec == "entmax15"
    assert info.shape.chunks == 4
    assert set(info.keys.values()) == set(layouts.dinov2())


def test_the_config_of_another_run_is_not_taken(written: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("student:\n  attn_plugins: entmax15\n")
    assert identify(written(layouts.dinov2(), "other/run/weights.pth")).spec is None


def test_dinov3_export_has_storage_tokens_and_rotary_positions(written: Callable[..., Path]) -> None:
    info = identify(written(layouts.dinov3()))
    assert (info.codebase, info.architecture, info.registers, info.shape.grid) == (
        "dinov3",
        "vit_small",
        4,
        None,
    )


def test_a_classifier_is_not_the_backbones(written: Callable[..., Path]) -> None:
    info = identify(written({"state_dict": layouts.backbone() | {"head.weight": torch.randn(10, 384)}}))
    assert info.codebase == "timm"
    assert "head.weight" not in info.keys


def test_compiled_and_fsdp_names_are_seen_through(written: Callable[..., Path]) -> None:
    state = layouts.prefixed(layouts.dinov2(chunks=2), "teacher.backbone._fsdp_wrapped_module._orig_mod.")
    info = identify(written({"model": state}))
    assert set(info.keys.values()) == set(layouts.dinov2())


def test_two_places_that_disagree_are_refused(written: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"more than one spec.*entmax15.*sparsemax"):
        identify(written({**dino_checkpoint(), "attn_plugins": {"spec": "sparsemax"}}))


def test_the_file_itself_is_believed_before_the_config_beside_it(written: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("student:\n  attn_plugins: sparsemax\n")
    with pytest.warns(UserWarning, match="itself tells 'entmax15', which is used"):
        assert identify(written(dino_checkpoint())).spec == "entmax15"


def test_what_is_no_vit_is_refused_with_what_it_holds(written: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"no Vision Transformer.*conv1.weight"):
        identify(written({"conv1.weight": torch.zeros(1)}))


def test_a_request_may_repeat_the_files_spec_but_not_contradict_it() -> None:
    assert agree("entmax15", None, "f") == agree("entmax15", "entmax15", "f") == "entmax15"
    assert agree(None, None, "f") is None
    assert agree(None, "entmax15", "f") == "entmax15"
    with pytest.raises(CheckpointError, match="'entmax15' and 'softmax' was asked"):
        agree("entmax15", "softmax", "f")
