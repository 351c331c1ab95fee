"""Specialization: its parameters, its FLOPs, and the packed batches that DINOv2 and DINOv3 train on."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import attn_plugins

from .tiny_vits import FAMILIES, dinov1, dinov2, dinov3, images, timm, trained


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", [(384, 12, 6), (768, 12, 12), (1024, 24, 16)], ids=["S", "B", "L"])
@pytest.mark.parametrize("build", [timm, dinov2], ids=["timm", "dinov2"])
def test_it_adds_eight_percent_to_vit_s_b_and_l(build: Callable[..., Any], size: tuple[int, int, int]) -> None:
    width, depth, heads = size
    with torch.device("meta"):
        model = build(embed_dim=width, depth=depth, num_heads=heads, patch_size=16)
    before = count(model)
    attn_plugins.patch(model, "specialization")
    assert 7.5 <= 100 * (count(model) / before - 1) <= 8.5


def test_parameters_of_the_others() -> None:
    width, depth = 48, 3
    expected = {"registers:num=5": 5 * width, "context_broadcasting": 0, "cb_s": depth * width, "last_vit": 0}
    expected["gated"] = depth * width * (width + 1)
    for spec, number in expected.items():
        model = timm()
        before = count(model)
        assert count(attn_plugins.patch(model, spec)) - before == number, spec


def test_the_flops_are_those_of_the_plain_model() -> None:
    model = trained(dinov1())
    totals = []
    for spec in ("softmax", "specialization"):
        attn_plugins.patch(model, spec)
        with FlopCounterMode(display=False) as counter:
            model(images()).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


def test_which_parts_are_specialized() -> None:
    model = attn_plugins.patch(dinov2(depth=6), "specialization")
    own = {name.split(".attn_plugins_specialization")[0] for name in model.state_dict() if "specialization" in name}
    everywhere = {f"blocks.{i}.{part}" for i in range(6) for part in ("norm1", "norm2", "ls1", "ls2")}
    assert own == everywhere | {"norm", "blocks.0.attn.qkv", "blocks.1.attn.qkv"}


def test_models_that_norm_cls_apart_already() -> None:
    model = trained(dinov3(untie_cls_and_patch_norms=True))
    attn_plugins.patch(model, "softmax")
    before = model(images())
    attn_plugins.patch(model, "specialization")
    assert not [name for name in model.state_dict() if name.startswith("norm.attn_plugins")]
    torch.testing.assert_close(model(images()), before, atol=1e-5, rtol=0)
    with pytest.raises(attn_plugins.UnsupportedModelError, match="untie_global_and_local_cls_norm=True"):
        attn_plugins.patch(dinov3(untie_global_and_local_cls_norm=True), "specialization")


def test_registers_of_the_models_own_go_with_cls() -> None:
    model = trained(attn_plugins.patch(dinov2(num_register_tokens=2), "specialization"))
    own = model.norm.attn_plugins_specialization
    own.weight.data.zero_()
    own.bias.data.fill_(7)
    out = model.forward_features(images())
    assert (out["x_norm_clstoken"] == 7).all() and (out["x_norm_regtokens"] == 7).all()
    assert out["x_norm_regtokens"].shape[1] == 2 and (out["x_norm_patchtokens"] != 7).any(-1).all()


SPECS = ["specialization", "cb_s", "context_broadcasting", "gated", "registers:num=2"]


@pytest.mark.parametrize("family", ["dinov2", "dinov3", "lightly-dinov2", "lightly-dinov3"])
@pytest.mark.parametrize("spec", [*SPECS, "entmax15+" + "+".join(SPECS)])
@pytest.mark.parametrize("counts", [(2, 3), (1, 1)])
def test_packed_batches_of_crops_give_what_each_crop_gives_alone(
    family: str, spec: str, counts: tuple[int, int], with_fmha: None
) -> None:
    model = trained(attn_plugins.patch(FAMILIES[family].build(), spec), seed=4)
    crops = [images(counts[0], 32), images(counts[1], 16)]
    packed = model.forward_features(crops, [None, None])
    for crop, found in zip(crops, packed, strict=True):
        alone = model.forward_features(crop)
        for key in ("x_norm_clstoken", "x_norm_patchtokens"):
            torch.testing.assert_close(found[key], alone[key], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["dinov2", "dinov3", "lightly-dinov2", "lightly-dinov3"])
def test_packed_batches_under_stochastic_depth(family: str, with_fmha: None) -> None:
    """In training only a part of each batch goes through a branch; every image there is treated as it is alone."""
    torch.manual_seed(0)
    model = FAMILIES[family].build(drop_path_rate=0.5, **({"drop_path_uniform": True} if "v2" in family else {}))
    spec = "specialization+cb_s+registers:num=2"
    trained(attn_plugins.patch(model, spec), seed=4).train()
    block = model.blocks[1]
    crops = [torch.randn(4, 19, 48), torch.randn(6, 7, 48)]
    ropes = [None, None] if "v2" in family else [model.rope_embed(H=4, W=4), model.rope_embed(H=2, W=2)]
    arguments = (crops,) if "v2" in family else (crops, ropes)
    alone = copy.deepcopy(block).eval()
    outs = block(*arguments)
    for x, out, rope in zip(crops, outs, ropes, strict=True):
        kept, scale = len(x) // 2, 2
        alone(x, *([] if rope is None else [rope]))  # tells its parts that they get this batch
        attention = alone.attn(alone.norm1(x), **({} if rope is None else {"rope": rope}))
        branch = x + scale * alone.ls1(attention)
        candidates = []
        for start in (x, branch):
            candidates += [start, start + scale * alone.ls2(alone.mlp(alone.norm2(start)))]
        distance = torch.stack([(out - candidate).abs().amax(dim=(1, 2)) for candidate in candidates])
        assert (distance.min(0).values < 1e-3).all()
        chosen = distance.argmin(0)
        assert (chosen >= 2).sum() == kept and (chosen % 2 == 1).sum() == kept
