"""An architecture that is named is built; what the tensors alone cannot tell is asked for, with what would work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from attn_plugins.checkpoints import CheckpointError, build, identify
from attn_plugins.checkpoints.layout import is_record

from . import layouts
from .models import ARCH, OPTIONS, bare, images, prefixed, torch_file, trained

pytestmark = pytest.mark.filterwarnings("ignore:.*softmax is assumed")


def written(name: str, folder: Path, **options: Any) -> tuple[torch.nn.Module, Path]:
    model = trained(timm.create_model(name, num_classes=0, **options))
    return model, torch_file(model.state_dict(), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}),
        ("deit_tiny_distilled_patch16_224", {"img_size": (64, 96)}),
        ("vit_tiny_patch16_224", {"img_size": (64, 96)}),
        ("vit_tiny_patch16_224", {"img_size": (32, 48), "patch_size": 8}),
        ("vit_small_patch14_dinov2", {"img_size": 70}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 70}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": (56, 70)}),
        ("deit3_small_patch16_224", {"img_size": 80}),
        ("eva02_tiny_patch14_224", {"img_size": 70}),
        ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"img_size": 64, "class_token": False, "global_pool": "avg"}),
        ("swin_tiny_patch4_window7_224", {}),
    ],
)
def test_a_named_architecture_is_built_whatever_the_tensors_look_like(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, path = written(name, tmp_path, **options)
    loaded, identity = build(f"timm/{name}", path, **options)
    assert identity["arch"] == f"timm/{name}"
    state = {key: tensor for key, tensor in loaded.state_dict().items() if not is_record(key)}
    assert state.keys() == model.state_dict().keys()
    assert all(tensor.equal(state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}),
        ("vit_small_patch14_dinov2", {"img_size": 70}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 70}),
        ("deit3_small_patch16_224", {"img_size": 80}),
        ("eva02_tiny_patch14_224", {"img_size": 70}),
    ],
)
def test_what_the_tensors_do_not_tell_is_refused_with_the_arch_that_works(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    _, path = written(name, tmp_path, **options)
    with pytest.raises(CheckpointError, match=f"arch='timm/{name}'"):
        build(checkpoint=path)
    build(f"timm/{name}", path, **options)


def test_a_grid_that_is_no_square_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = written("vit_tiny_patch16_224", tmp_path, img_size=(64, 96))
    shape = identify(path).shape
    assert (shape.grid, shape.positions) == (None, 25)
    with_and_without: list[dict[str, Any]] = [{}, {"img_size": (64, 96)}]
    for options in with_and_without:
        with pytest.raises(
            CheckpointError, match=r"4 x 6, 3 x 8, 2 x 12 patches.*img_size=\(HEIGHT, WIDTH\)"
        ) as caught:
            build(checkpoint=path, **options)
        assert "arch='timm/vit_tiny_patch16_224'" in str(caught.value)
    monkeypatch.delenv("DINO_ROOT", raising=False)
    with pytest.raises(ValueError, match="square grids alone"):
        build("dinov1/vit_tiny", path, img_size=(64, 96))
    loaded, _ = build("timm/vit_tiny_patch16_224", path, img_size=(64, 96))
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(loaded(x), model(x))


def mae(seed: int = 0) -> dict[str, Any]:
    state = dict(bare(seed, depth=12, embed_dim=192).state_dict())
    decoder = {"decoder_embed.weight": torch.randn(8, 192), "decoder_blocks.0.norm1.weight": torch.randn(8)}
    decoder |= {"decoder_pos_embed": torch.randn(1, 17, 8), "decoder_pred.weight": torch.randn(8, 8)}
    return {"model": {**state, **decoder, "mask_token": torch.randn(1, 1, 8)}}


def test_mae_is_its_encoder(tmp_path: Path) -> None:
    path = torch_file(mae(), tmp_path)
    info = identify(path)
    assert (info.codebase, info.architecture, info.shape.grid) == ("mae", "vit_tiny", 4)
    loaded, identity = build(checkpoint=path)
    assert identity["arch"] == "timm/vit_tiny"
    torch.testing.assert_close(loaded(images()), bare(depth=12, embed_dim=192)(images()))


def test_ibot_is_its_teacher_or_its_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DINO_ROOT", raising=False)
    teacher, student = (dict(bare(seed, depth=12, embed_dim=192).state_dict()) for seed in (0, 1))
    contents = {
        "teacher": prefixed(teacher, "backbone."),
        "student": prefixed({**student, "masked_embed": torch.zeros(1, 192)}, "module.backbone."),
    }
    path = torch_file(contents, tmp_path)
    assert identify(path).section == "teacher"
    assert "masked_embed" in identify(path, "student").heads.values()
    loaded, identity = build(checkpoint=path)
    assert identity["arch"] == "dinov1/vit_tiny"
    torch.testing.assert_close(loaded(images()), bare(depth=12, embed_dim=192)(images()))


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("timm/no_such_model", {}),
        ("timm/vit_tiny_patch16_224.augreg_in21k", {}),
        ("timm/hf-hub:evil/model", {}),
        ("timm/local-dir:evil", {}),
        ("hf-hub:evil/model", {}),
        ("transformers/evil", {}),
        ("dinov1/os", {}),
        ("dinov2/../evil", {}),
        (ARCH, {"pretrained": True}),
        (ARCH, {"checkpoint_path": "evil.pth"}),
        (ARCH, {"features_only": True}),
        (ARCH, {"pretrained_cfg": {"url": "http://evil"}}),
        (ARCH, {"block_fn": "evil.Block"}),
        (ARCH, {"norm_layer": "evil"}),
        (ARCH, {"img_size": "evil"}),
        (ARCH, {"depth": 10**9}),
        (ARCH, {"img_size": [32, 32, 32]}),
        (ARCH, {"global_pool": "evil"}),
    ],
)
def test_a_file_chooses_names_and_sizes_and_nothing_else(arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    contents = {
        "model": bare().state_dict(),
        "attn_plugins": {"spec": "softmax", "arch": arch, "arch_options": options},
    }
    path = torch_file(contents, tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)tells (arch|the argument).*--arch"):
        build(checkpoint=path)
    if arch != ARCH:
        loaded: Any = build("timm/vit_tiny_patch16_224", path, depth=3, embed_dim=48)[0]
        assert len(loaded.blocks) == 3


def test_with_an_arch_of_ones_own_a_files_other_arguments_are_left_out(tmp_path: Path) -> None:
    options = {**OPTIONS, "act_layer": "relu"}
    told = {"spec": "softmax", "arch": ARCH, "arch_options": options}
    path = torch_file({"model": bare().state_dict(), "attn_plugins": told}, tmp_path)
    with pytest.warns(UserWarning, match=r"act_layer='relu'.*left out"):
        loaded, _ = build(ARCH, path)
    torch.testing.assert_close(loaded(images()), bare()(images()))
    with pytest.warns(UserWarning, match="left out"):
        other, _ = build(ARCH, path, act_layer="relu")
    torch.testing.assert_close(other(images()), bare(act_layer="relu")(images()))


def test_a_file_of_a_size_that_dino_names_is_dinos(tmp_path: Path) -> None:
    path = torch_file(layouts.backbone(), tmp_path)
    assert identify(path).codebase == "dino"
