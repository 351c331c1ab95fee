"""A codebase is one file (toy.py): one call makes every room know it, and none knows it without."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import entmax
import pytest
import torch
from torch import Tensor, nn

import attn_plugins
from attn_plugins.checkpoints import CheckpointError, build, identify, load_backbone, save
from attn_plugins.codebases import Adapter, register_codebase
from attn_plugins.codebases.base import CODEBASES
from attn_plugins.codebases.features import ViTFeatures
from attn_plugins.registry import ADAPTERS
from attn_plugins.trainers.launch import patch_as_built

from .toy import TOY, Mixer, ToyViT


@pytest.fixture
def known() -> Iterator[None]:
    before = list(CODEBASES), list(ADAPTERS)
    with CODEBASES.temporarily(), ADAPTERS.temporarily():
        register_codebase(TOY)
        yield
    assert (list(CODEBASES), list(ADAPTERS)) == before


def vit(**options: int) -> ToyViT:
    torch.manual_seed(0)
    return ToyViT(**options).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    cls, patches = model(images())
    return torch.cat([cls[:, None], patches], dim=1)


def test_without_the_call_nothing_knows_it(tmp_path: Path) -> None:
    model = vit()
    with pytest.raises(attn_plugins.UnsupportedModelError):
        attn_plugins.patch(model, "entmax15")
    with pytest.raises(attn_plugins.UnsupportedModelError, match="has no ViT that token mechanisms know"):
        attn_plugins.mechanisms.find_vits(model)
    with pytest.raises(attn_plugins.UnsupportedModelError, match="no list of blocks"):
        ViTFeatures(model)
    torch.save(model.state_dict(), tmp_path / "toy.pth")
    with pytest.raises(CheckpointError, match="holds no Vision Transformer"):
        identify(tmp_path / "toy.pth")
    with pytest.raises(ValueError, match="unknown architecture 'toy/tiny'"):
        build("toy/tiny")
    seen: list[nn.Module] = []
    with patch_as_built(seen.append):
        vit()
    assert not seen


@pytest.mark.usefixtures("known")
def test_its_attention_is_patched() -> None:
    model, x = vit(), torch.randn(2, 5, 32)
    mixer: Any = model.stages[0].mixer
    q, k, v = mixer.split(x)
    wanted = mixer.out((entmax.entmax15(q @ k.mT / 8**0.5, dim=-1) @ v).transpose(1, 2).flatten(2))
    before = outputs(model)
    attn_plugins.patch(model, "entmax15")
    assert [line.adapter for line in attn_plugins.describe(model)] == ["toy"] * 3
    torch.testing.assert_close(mixer(x), wanted, rtol=1e-4, atol=1e-5)
    assert attn_plugins.verify(model, images()).ok
    attn_plugins.unpatch(model)
    assert torch.equal(outputs(model), before)


@pytest.mark.usefixtures("known")
def test_registers_enter_and_leave_its_outputs_alone() -> None:
    model, own = attn_plugins.patch(vit(), "registers:num=2"), vit(n_memory=2)
    tokens = torch.randn(1, 2, 32)
    own.load_state_dict(vit().state_dict() | {"memory": tokens})
    model.get_parameter("attn_plugins_registers.tokens").data.copy_(tokens)
    torch.testing.assert_close(outputs(model), outputs(own))
    torch.testing.assert_close(outputs(pickle.loads(pickle.dumps(model))), outputs(own))
    with pytest.raises(attn_plugins.UnsupportedModelError, match="build it with n_memory=4 instead"):
        attn_plugins.patch(own, "registers")


@pytest.mark.usefixtures("known")
def test_specialization_changes_what_cls_goes_through_and_nothing_else() -> None:
    plain, model = vit(n_memory=1), attn_plugins.patch(vit(n_memory=1), "specialization")
    torch.testing.assert_close(outputs(model), outputs(plain))
    twins = {name.rpartition(".attn_plugins_specialization")[0] for name, _ in model.named_parameters()} - {""}
    parts = ("before", "between", "scale_a", "scale_b")
    assert twins == {f"stages.{index}.{part}" for index in range(3) for part in parts} | {
        "stages.0.mixer.to_qkv",
        "final",
    }
    model.get_parameter("final.attn_plugins_specialization.bias").data += 1
    changed = outputs(model) - outputs(plain)
    torch.testing.assert_close(changed[:, 0], torch.ones(2, 32))
    torch.testing.assert_close(changed[:, 1:], torch.zeros(2, 16, 32))


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("spec", ["context_broadcasting", "cb_s", "gated", "last_vit"])
def test_every_mechanism_finds_its_parts(spec: str) -> None:
    model = attn_plugins.patch(vit(), spec)
    assert outputs(model).isfinite().all()
    assert {str(plugin) for plugin in attn_plugins.describe(model).mechanisms} == {
        spec if spec != "last_vit" else "last_vit:variant=8c126e0"
    }


@pytest.mark.usefixtures("known")
def test_its_features_are_read() -> None:
    model = vit(n_memory=2)
    read = ViTFeatures(model)
    assert (read.depth, read.embed_dim, read.patch_size) == (3, 32, 8)
    with torch.no_grad():
        (patches, cls), (last, last_cls) = read(images(), (0, 2))
        first = model.final(model.stages[0](model.embed(images())))
        wanted_cls, wanted = model(images())
    torch.testing.assert_close(cls, first[:, 0])
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), first[:, 3:])
    torch.testing.assert_close(last_cls, wanted_cls)
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), wanted)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("arch", [None, "toy/tiny"])
def test_its_checkpoint_is_identified_and_built(arch: str | None, tmp_path: Path) -> None:
    model = attn_plugins.patch(vit(n_memory=2), "entmax_alpha+specialization")
    save(tmp_path / "toy.pth", model, arch=arch)
    info = identify(tmp_path / "toy.pth")
    assert (info.codebase, info.architecture, info.patch_size, info.registers) == ("toy", "tiny", 8, 2)
    shape = info.shape
    assert (shape.depth, shape.num_heads, shape.grid, shape.ffn, shape.layer_scale) == (3, 4, 4, "mlp", True)
    built, identity = build(checkpoint=tmp_path / "toy.pth")
    assert isinstance(built, ToyViT) and identity["arch"] == "toy/tiny"
    assert identity["plugins"] == "entmax_alpha+specialization"
    torch.testing.assert_close(outputs(built), outputs(model))
    other = attn_plugins.patch(vit(n_memory=2), "entmax_alpha+specialization")
    load_backbone(other, tmp_path / "toy.pth")
    assert torch.equal(outputs(other), outputs(model))


@pytest.mark.usefixtures("known")
def test_a_file_may_not_choose_what_the_codebase_does_not_name(tmp_path: Path) -> None:
    save(tmp_path / "toy.pth", vit(), arch="toy/enormous")
    with pytest.raises(CheckpointError, match="tells arch='toy/enormous'"):
        build(checkpoint=tmp_path / "toy.pth")


@pytest.mark.usefixtures("known")
def test_the_launcher_notices_it() -> None:
    seen: list[nn.Module] = []
    with patch_as_built(seen.append):
        model = vit()
    assert seen == [model]


def test_a_name_that_is_taken_changes_nothing() -> None:
    before = list(CODEBASES), list(ADAPTERS)
    with pytest.raises(ValueError, match="'timm' is registered already"):
        register_codebase(replace(TOY, name="timm"))
    taken = Adapter("sdpa", lambda cls: issubclass(cls, Mixer), TOY.adapters[0].overrides)
    with pytest.raises(ValueError, match=r"toy brings the adapters \['sdpa'\], whose names are taken"):
        register_codebase(replace(TOY, adapters=(*TOY.adapters, taken)))
    assert (list(CODEBASES), list(ADAPTERS)) == before
