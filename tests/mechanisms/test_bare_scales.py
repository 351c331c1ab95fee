"""Specialization of LayerScale that is a bare parameter of its block: timm's DINOv3 and EVA-02."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

import attn_plugins

from .tiny_vits import images, trained

OWN = "attn_plugins_specialization"
SIZES: dict[str, Any] = {"img_size": 64, "embed_dim": 48, "num_heads": 3, "depth": 3, "num_classes": 0}


def dinov3() -> Any:
    return timm.create_model("vit_small_patch16_dinov3", **SIZES)


def eva02() -> Any:
    return timm.create_model(
        "eva02_tiny_patch14_224", **SIZES | {"img_size": 56, "init_values": 1.0, "qkv_fused": False}
    )


def attention_only() -> Any:
    return timm.create_model("vit_small_patch16_dinov3", **SIZES, attn_only_layer_scale=True)


BUILDS = [dinov3, eva02, attention_only]


def side(build: Callable[[], Any]) -> int:
    return 56 if build is eva02 else 64


@pytest.mark.parametrize("build", BUILDS)
def test_identity_at_start_and_undone_bit_for_bit(build: Callable[[], Any]) -> None:
    # In double precision, since without a final norm these outputs are around 20.
    model = attn_plugins.patch(trained(build()).double(), "softmax")
    x, names = images(size=side(build)).double(), list(model.state_dict())
    with torch.no_grad():
        before = model.forward_features(x)
        attn_plugins.patch(model, "specialization")
        assert (model.forward_features(x) - before).abs().max() <= 1e-10
        trained(model, seed=3).double()
        attn_plugins.patch(model, "softmax")
        assert list(model.state_dict()) == names
        model.load_state_dict(trained(build()).state_dict())
        assert torch.equal(model.forward_features(x), before)
    attn_plugins.unpatch(model)
    assert not [key for module in model.modules() for key in vars(module) if key.startswith("attn_plugins")]


@pytest.mark.parametrize("build", BUILDS)
def test_each_kind_of_token_has_its_own_scale(build: Callable[[], Any]) -> None:
    model = trained(attn_plugins.patch(build(), "specialization"), seed=4)
    block, prefix = model.blocks[-1], model.num_prefix_tokens
    x, seen = torch.randn(2, prefix + 16, 48), {}
    for name in ("attn", "mlp"):
        getattr(block, name).register_forward_hook(lambda module, args, out, name=name: seen.update({name: out}))
    found = block(x, rope=model.rope.get_embed([4, 4]))
    tensors, expected = block.state_dict(), x.clone()
    for branch, gamma in (("attn", "gamma_1"), ("mlp", "gamma_2")):
        for token in range(x.shape[1]):
            scale = tensors.get(f"{OWN}.{gamma}" if token < prefix else gamma, torch.ones(48))
            expected[:, token] += scale * seen[branch][:, token]
    torch.testing.assert_close(found, expected)
    assert (tensors[f"{OWN}.gamma_1"] - tensors["gamma_1"]).abs().max() > 0.1


@pytest.mark.parametrize("build", BUILDS)
def test_gradients_reach_both_and_none_decays(build: Callable[[], Any]) -> None:
    model = attn_plugins.patch(trained(build()), "entmax15+specialization")
    model.forward_features(images(size=side(build))).square().sum().backward()
    scales = {name: p for name, p in model.named_parameters() if "gamma_" in name}
    assert len(scales) == 3 * 2 * (1 if build is attention_only else 2)
    for name, parameter in scales.items():
        assert parameter.ndim == 1 and parameter.grad is not None and (parameter.grad != 0).any(), name


@pytest.mark.parametrize("build", BUILDS)
def test_copies_pickles_and_state_dicts_carry_the_scales(build: Callable[[], Any]) -> None:
    model, x = trained(attn_plugins.patch(build(), "specialization"), seed=5), images(size=side(build))
    fresh = attn_plugins.patch(build(), "specialization").eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model.forward_features(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
            assert torch.equal(twin.forward_features(x), expected)
            assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
        given = {name: tensor + 1 for name, tensor in model.state_dict().items()}
        fresh.load_state_dict(given)
        assert torch.equal(torch.func.functional_call(model, given, x), fresh(x))


def test_timm_starts_both_scales_anew() -> None:
    model = trained(attn_plugins.patch(dinov3(), "specialization"))
    model.init_weights()
    for block in model.blocks:
        for scale in (block.gamma_1, block.gamma_2, *getattr(block, OWN).parameters()):
            assert (scale == block.init_values).all()


def test_plain_tensors_in_place_of_the_parameters() -> None:
    """What FSDP and the replicas of ``nn.DataParallel`` do."""
    model = trained(attn_plugins.patch(dinov3(), "specialization"))
    x, block = images(size=64), model.blocks[1]
    before, parameter = model(x), block.gamma_1
    del block.gamma_1
    assert not hasattr(block, "gamma_1")
    block.gamma_1 = parameter.detach().clone()
    assert torch.equal(model(x), before)
    del block.gamma_1
    block.gamma_1 = parameter
    assert torch.equal(model(x), before) and block.gamma_1 is parameter


@pytest.mark.slow
def test_it_compiles_without_a_graph_break() -> None:
    model = trained(attn_plugins.patch(dinov3(), "specialization"))
    x = images(size=64)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
