"""What holds for each mechanism on each codebase: identity at start, equality with plain code, copies, undoing."""

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock

import attn_plugins

from . import tiny_vits
from .plain import Plain
from .tiny_vits import FAMILIES, Family, images, trained

KEEPS_OUTPUT = ["specialization", "cb_s", "gated", "specialization+cb_s+gated"]
CHANGES_OUTPUT = ["registers:num=2", "context_broadcasting", "last_vit:k=3"]
EVERYTHING = "entmax15+" + "+".join(["specialization", "cb_s", "gated", *CHANGES_OUTPUT])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def model(family: Family) -> Any:
    # Softmax by attn_plugins, since official DINOv2 may find an xformers that has no CPU kernel.
    return attn_plugins.patch(trained(family.build()), "softmax")


@pytest.mark.parametrize("spec", KEEPS_OUTPUT)
def test_what_starts_as_identity_leaves_a_trained_model_as_it_was(family: Family, model: Any, spec: str) -> None:
    with torch.no_grad():
        cls, patches = family.read(model, images())
        attn_plugins.patch(model, spec)
        for found, expected in zip(family.read(model, images()), (cls, patches), strict=True):
            assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("spec", [*CHANGES_OUTPUT, "entmax15+specialization", EVERYTHING])
def test_the_others_change_it_and_all_can_be_undone(family: Family, model: Any, spec: str) -> None:
    with torch.no_grad():
        before, names = family.read(model, images()), list(model.state_dict())
        attn_plugins.patch(model, spec)
        after = family.read(model, images())
        assert after[0].shape == before[0].shape and after[1].shape == before[1].shape
        assert (after[0] - before[0]).abs().max() > 1e-3
        attn_plugins.patch(model, "softmax")
        assert list(model.state_dict()) == names
        for found, expected in zip(family.read(model, images()), before, strict=True):
            assert torch.equal(found, expected)
        attn_plugins.patch(model, spec)
        attn_plugins.unpatch(model)
    assert list(model.state_dict()) == [name for name in names if not name.endswith("attn_plugins_record")]
    assert not [key for module in model.modules() for key in vars(module) if key.startswith("attn_plugins")]
    assert not [cls for module in model.modules() for cls in type(module).__mro__ if "_attn_plugins_base" in vars(cls)]


def test_copies_pickles_and_state_dicts_carry_everything(family: Family, model: Any) -> None:
    attn_plugins.patch(model, EVERYTHING)
    trained(model, seed=5)
    with torch.no_grad():
        expected = family.read(model, images())
        fresh = attn_plugins.patch(family.build(), EVERYTHING).eval()
        fresh.load_state_dict(model.state_dict())
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
            for found, wanted in zip(family.read(twin, images()), expected, strict=True):
                assert torch.equal(found, wanted)
            shared = {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
            assert not shared


@pytest.mark.parametrize(
    "spec", ["specialization", "cb_s", "gated", "registers:num=2", "entmax15+specialization+registers"]
)
def test_gradients_reach_every_new_parameter(family: Family, model: Any, spec: str) -> None:
    names = set(dict(model.named_parameters()))
    attn_plugins.patch(model, spec)
    cls, patches = family.read(model, images(4))
    (cls.square().sum() + patches.square().sum()).backward()
    new = {name: parameter for name, parameter in model.named_parameters() if name not in names}
    assert new
    # A key bias shifts all scores of a row alike, which no normalizer feels.
    dead = [name for name, p in new.items() if p.grad is None or (p.grad == 0).all()]
    assert [name for name in dead if "k_proj" not in name or not name.endswith("bias")] == []


@pytest.mark.parametrize("name", ["dinov1", "timm"])
@pytest.mark.parametrize(
    "spec",
    [
        *(
            spec
            for n in (1, 2)
            for spec in map("+".join, itertools.combinations(["specialization", "cb_s", "gated"], n))
        ),
        "registers:num=3",
        "context_broadcasting",
        "registers:num=3+specialization+cb_s+gated+context_broadcasting",
    ],
)
def test_equality_with_a_plain_reimplementation(name: str, spec: str) -> None:
    model = trained(attn_plugins.patch(FAMILIES[name].build(), spec), seed=2).double()
    x = images().double()
    cls, patches = FAMILIES[name].read(model, x)
    eps = model.norm.eps
    plain = Plain(model, eps=eps, halves="context" in spec)(x)
    torch.testing.assert_close(torch.cat([cls[:, None], patches], 1), plain, atol=1e-10, rtol=0)


def eva(**options: Any) -> Any:
    return timm.create_model("eva02_tiny_patch14_224", img_size=56, embed_dim=48, num_heads=3, depth=2, **options)


def post_norm() -> Any:
    return tiny_vits.timm(block_fn=ResPostBlock)


@pytest.mark.parametrize(
    "build, spec, says",
    [
        (
            lambda: eva(qkv_fused=True),
            "specialization",
            "EvaAttention of Eva computes with its bare parameters .q_bias.*build it with qkv_fused=False",
        ),
        (eva, "registers", "Eva counts its tokens in places"),
        (lambda: eva(num_reg_tokens=4), "registers", "has 4 register tokens of its own"),
        (post_norm, "gated", "ResPostBlock norms the attention's output"),
        (lambda: tiny_vits.timm(class_token=False, global_pool="avg"), "cb_s", "has no .CLS. token"),
        (lambda: tiny_vits.transformers("Beit"), "cb_s", "model type 'beit', only deit"),
    ],
)
def test_what_a_mechanism_cannot_change_is_refused_before_anything_changes(
    build: Callable[..., Any], spec: str, says: str
) -> None:
    model = build()
    names, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    with pytest.raises(attn_plugins.UnsupportedModelError, match=says):
        attn_plugins.patch(model, f"entmax15+{spec}")
    assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize(
    "build",
    [lambda: eva(qkv_fused=False), lambda: tiny_vits.transformers("DeiT"), lambda: tiny_vits.transformers("ViTMSN")],
)
def test_identity_on_further_vits(build: Callable[..., Any]) -> None:
    model = attn_plugins.patch(trained(build()).double(), "softmax")
    x = images(size=56 if hasattr(model, "rope") else 32).double()
    read = model.forward_features if hasattr(model, "forward_features") else lambda x: model(x).last_hidden_state
    with torch.no_grad():
        before = read(x)
        attn_plugins.patch(model, "specialization+cb_s+gated")
        torch.testing.assert_close(read(x), before, atol=1e-10, rtol=0)


def test_a_model_that_is_no_vit_is_refused_before_anything_changes() -> None:
    layer = torch.nn.TransformerEncoderLayer(32, 2, batch_first=True)
    names = list(layer.state_dict())
    with pytest.raises(attn_plugins.UnsupportedModelError, match="has no ViT that token mechanisms know"):
        attn_plugins.patch(layer, "registers")
    assert list(layer.state_dict()) == names
