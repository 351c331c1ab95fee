"""Features equal what the models' own authors give for a layer, with and without norm and [CLS]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import attn_plugins
from attn_plugins.codebases.features import ViTFeatures, center_pad, evenly_spaced

from .conftest import checkout, tiny_vit

SPECS = ("softmax", "entmax15")


def randomised(model: Any) -> Any:
    """No parameter left at a constant that would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def images(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("norm", [True, False])
def test_timm_layers(spec: str, norm: bool) -> None:
    model, x = tiny_vit(spec), images(48, 80)
    with torch.no_grad():
        ours = ViTFeatures(model)(x, range(4), norm)
        theirs = model.forward_intermediates(
            x, indices=[0, 1, 2, 3], norm=norm, return_prefix_tokens=True, intermediates_only=True
        )
    for (patches, cls), (their_patches, their_prefix) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(patches, their_patches)
        torch.testing.assert_close(cls, their_prefix[:, 0])


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("chunks", [0, 2])
@pytest.mark.parametrize("norm", [True, False])
def test_official_dinov2(registers: int, chunks: int, norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(checkout("DINOV2_ROOT")))
    from dinov2.models.vision_transformer import DinoVisionTransformer

    model = randomised(
        DinoVisionTransformer(
            img_size=56,
            patch_size=14,
            embed_dim=64,
            depth=4,
            num_heads=2,
            num_register_tokens=registers,
            block_chunks=chunks,
        )
    )
    attn_plugins.patch(model, "entmax15")
    x = images(42, 70)
    with torch.no_grad():
        ours = ViTFeatures(model)(x, range(4), norm)
        theirs = model.get_intermediate_layers(x, n=range(4), reshape=True, return_class_token=True, norm=norm)
    for (patches, cls), (their_patches, their_cls) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(patches, their_patches)
        torch.testing.assert_close(cls, their_cls)


def test_official_dinov1(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(dinov1(checkout("DINO_ROOT"), monkeypatch, depth=4, embed_dim=64, num_heads=2))
    attn_plugins.patch(model, "entmax15")
    x = images(48, 80)
    with torch.no_grad():
        ours = ViTFeatures(model)(x, range(4), norm=True)
        theirs = model.get_intermediate_layers(x, n=4)
    for (patches, cls), tokens in zip(ours, theirs, strict=True):
        torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens[:, 1:])
        torch.testing.assert_close(cls, tokens[:, 0])


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("norm", [True, False])
def test_official_dinov3(untied: bool, norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(checkout("DINOV3_ROOT")))
    from dinov3.models.vision_transformer import DinoVisionTransformer

    model = DinoVisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=64,
        depth=4,
        num_heads=2,
        n_storage_tokens=4,
        untie_cls_and_patch_norms=untied,
    )
    model.init_weights()
    attn_plugins.patch(randomised(model), "entmax15")
    x = images(48, 80)
    with torch.no_grad():
        ours = ViTFeatures(model)(x, range(4), norm)
        theirs = model.get_intermediate_layers(x, n=range(4), reshape=True, return_class_token=True, norm=norm)
    for (patches, cls), (their_patches, their_cls) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(patches, their_patches)
        torch.testing.assert_close(cls, their_cls)


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Dinov2WithRegisters", "DINOv3ViT"])
def test_transformers_hidden_states(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        image_size=64, patch_size=16, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96
    )
    model = randomised(getattr(transformers, f"{kind}Model")(config))
    x = images(48, 80)
    extra: dict[str, Any] = {} if kind != "ViT" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        output = model(pixel_values=x, output_hidden_states=True, **extra)
        raw = ViTFeatures(model)(x, range(3), norm=False)
        normed = ViTFeatures(model)(x, [2], norm=True)
    # The last entry of hidden_states may be normed, depending on the model; the ones between are not.
    for (patches, cls), tokens in zip(raw[:-1], output.hidden_states[1:3], strict=True):
        torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens[:, -15:])
        torch.testing.assert_close(cls, tokens[:, 0])
    torch.testing.assert_close(normed[0][0].flatten(2).transpose(1, 2), output.last_hidden_state[:, -15:])


def test_dropping_the_blocks_behind_changes_no_feature() -> None:
    model, x = tiny_vit("entmax15"), images(64, 64)
    with torch.no_grad():
        before = ViTFeatures(model)(x, [1], norm=True)
        features = ViTFeatures(model)
        features.stop_after(1)
        after = features(x, [1], norm=True)
    assert len(model.blocks) == 2
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(28, 28), (29, 41), (30, 27), (1, 14)])
def test_padding_is_dinov2s(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(*size)
    padded = center_pad(x, 14)
    assert all(side % 14 == 0 for side in padded.shape[-2:])
    monkeypatch.syspath_prepend(str(checkout("DINOV2_ROOT")))
    from dinov2.hub.utils import CenterPadding

    torch.testing.assert_close(padded, CenterPadding(14)(x).clone(), rtol=0, atol=0)


def test_four_layers_are_dinov2s() -> None:
    assert [evenly_spaced(depth) for depth in (12, 24, 40)] == [(2, 5, 8, 11), (4, 11, 17, 23), (9, 19, 29, 39)]
    assert evenly_spaced(4) == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="the backbone has 3"):
        evenly_spaced(3)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(attn_plugins.UnsupportedModelError, match="has no list of blocks"):
        ViTFeatures(nn.Linear(2, 2))


def dinov1(root: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """DINOv1's scripts have common names, so they are forgotten again."""
    monkeypatch.syspath_prepend(str(root))
    for name in ("vision_transformer", "utils"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from vision_transformer import VisionTransformer

    for name in ("vision_transformer", "utils"):
        sys.modules.pop(name, None)  # monkeypatch would put back what it deletes
    return VisionTransformer(img_size=[64], patch_size=16, qkv_bias=True, **options)
