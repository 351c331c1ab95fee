"""A backbone is loaded whole, with its own attention, or refused; compared with official DINOv2 modules and timm."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attn_plugins import patch, unpatch
from attn_plugins.checkpoints import CheckpointError, identify, load_backbone, load_backbone_state, save
from attn_plugins.patching.record import refuse_others, spec_of


@pytest.fixture(autouse=True)
def no_xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed, lightly-train's DINOv2 takes its kernels, and it has none for a CPU."""
    source = pytest.importorskip("lightly_train._models.dinov2_vit.dinov2_vit_src.layers.attention")
    monkeypatch.setattr(source, "XFORMERS_AVAILABLE", False)


def dinov2_vit(*, chunks: int = 0, image: int = 56, registers: int = 0) -> Any:
    from lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer import DinoVisionTransformer

    torch.manual_seed(0)
    return DinoVisionTransformer(
        img_size=image, patch_size=14, embed_dim=32, depth=4, num_heads=2, init_values=1.0, block_chunks=chunks,
        num_register_tokens=registers,
    ).eval()  # fmt: skip


@pytest.fixture
def timm_vit() -> Any:
    import timm

    return timm.create_model("test_vit", img_size=64, num_classes=0).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Write a state dict as a trainer would: under a key, with prefixes."""

    def write(model: nn.Module, prefix: str = "", section: str | None = None) -> Path:
        state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
        path = tmp_path / "weights.pth"
        torch.save({section: state} if section else state, path)
        return path

    return write


@pytest.mark.parametrize(("saved_chunks", "loaded_chunks"), [(0, 0), (2, 0), (0, 2), (2, 4)])
def test_block_chunks_are_rearranged(saved: Callable[..., Path], saved_chunks: int, loaded_chunks: int) -> None:
    source, target = dinov2_vit(chunks=saved_chunks), dinov2_vit(chunks=loaded_chunks)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    info = load_backbone(target, saved(source, "backbone.", "teacher"))
    assert info.shape.chunks == saved_chunks
    image = torch.randn(1, 3, 56, 56)
    torch.testing.assert_close(target(image), source(image), rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "_orig_mod.", "teacher.backbone."])
def test_prefixes_are_taken_off(timm_vit: Any, saved: Callable[..., Path], prefix: str) -> None:
    state, info = load_backbone_state(saved(timm_vit, prefix))
    assert info.prefix == prefix
    assert state.keys() == timm_vit.state_dict().keys()
    assert all(state[name].equal(tensor) for name, tensor in timm_vit.state_dict().items())


def test_a_position_embedding_of_another_size_is_resized_as_upstream_does_for_another_image(
    saved: Callable[..., Path],
) -> None:
    source, target = dinov2_vit(image=56), dinov2_vit(image=112)
    source.interpolate_offset = 0.0  # upstream's plain interpolation to a size, without its historical offset
    load_backbone(target, saved(source))
    x = torch.zeros(1, 1 + 8 * 8, 32)
    torch.testing.assert_close(target.pos_embed, source.interpolate_pos_encoding(x, 112, 112), rtol=0, atol=1e-6)


def test_missing_unexpected_and_misshapen_keys_are_listed_and_nothing_changes(saved: Callable[..., Path]) -> None:
    source, target = dinov2_vit(registers=3), dinov2_vit()
    source.norm = torch.nn.LayerNorm(16)
    del source.mask_token
    before = copy.deepcopy(target.state_dict())
    path = saved(source)
    with pytest.raises(CheckpointError) as caught:
        load_backbone(target, path)
    message = str(caught.value)
    assert "Unexpected: ['register_tokens']" in message
    assert "Missing: ['mask_token']" in message
    assert "norm.weight (16,) for (32,)" in message
    assert all(tensor.equal(before[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("spec", ["entmax15", "entmax_alpha", "sparsemax+registers:num=2"])
def test_a_file_we_wrote_comes_back_with_its_spec(timm_vit: Any, tmp_path: Path, spec: str) -> None:
    clean = copy.deepcopy(timm_vit)
    path = save(tmp_path / "model.pth", patch(timm_vit, spec), epoch=3)
    assert identify(path).spec == spec
    with pytest.raises(CheckpointError, match="'softmax' was asked"):
        load_backbone(clean, path)
    with pytest.raises(CheckpointError, match=r"'entmax:alpha=1\.3' was asked"):
        load_backbone(patch(copy.deepcopy(clean), "entmax:alpha=1.3"), path)
    load_backbone(patch(clean, spec), path)
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(clean(image), timm_vit(image), rtol=0, atol=0)


def test_weights_without_a_spec_load_into_any_model_that_needs_no_more(
    timm_vit: Any, saved: Callable[..., Path]
) -> None:
    path = saved(timm_vit)
    load_backbone(patch(copy.deepcopy(timm_vit), "entmax15"), path)
    with pytest.raises(CheckpointError, match=r"attn_plugins_normalizer\.logit"):
        load_backbone(patch(copy.deepcopy(timm_vit), "entmax_alpha"), path)


def test_a_killed_save_leaves_the_old_file(timm_vit: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pth", timm_vit)
    whole = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save(path, timm_vit, hook=lambda: None)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_the_spec_travels_in_a_bare_state_dict(timm_vit: Any, tmp_path: Path) -> None:
    model = patch(timm_vit, "entmax15")
    for variant in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.nn.ModuleDict({"m": model})):
        torch.save(variant.state_dict(), tmp_path / "bare.pth")
        assert identify(tmp_path / "bare.pth").spec == "entmax15"
    torch.save(unpatch(model).state_dict(), tmp_path / "bare.pth")
    assert identify(tmp_path / "bare.pth").spec is None


def test_load_state_dict_refuses_others_where_asked_to(timm_vit: Any) -> None:
    other = patch(copy.deepcopy(timm_vit), "entmax15", layers=[0])
    model = patch(timm_vit, "entmax15")
    refuse_others(model)
    model.load_state_dict(model.state_dict())
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        other.cls_token.add_(1)
    with pytest.raises(ValueError, match="'layers'"):
        model.load_state_dict(other.state_dict())
    assert model.cls_token.equal(before["cls_token"])
    assert spec_of(torch.nn.Sequential(model)) == "entmax15"
