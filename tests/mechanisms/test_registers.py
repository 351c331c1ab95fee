"""Registers against the codebases' own, and every place that counts tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import attn_plugins

from .tiny_vits import (
    FAMILIES,
    WIDTH,
    dinov1,
    dinov2,
    dinov3,
    hf_dinov2,
    hf_dinov3,
    images,
    timm,
    trained,
    transformers,
)


def eva(**options: Any) -> Any:
    from timm.models.eva import Eva

    return Eva(16, 8, num_classes=0, embed_dim=WIDTH, depth=1, num_heads=3, use_rot_pos_emb=True, **options)


def registers_of(model: nn.Module) -> nn.Parameter:
    return dict(model.named_parameters())["attn_plugins_registers.register_tokens.bias"]


def native_pair(build: Callable[..., Any], option: str, parameter: str) -> tuple[Any, Any]:
    """A model with registers of its own, and the patched model without, holding the same weights."""
    native = trained(build(**{option: 4}))
    plain = build()
    state = {name: value for name, value in native.state_dict().items() if not name.endswith(parameter)}
    plain.load_state_dict(state)
    attn_plugins.patch(native, "softmax")
    attn_plugins.patch(plain, "registers:num=4").eval()
    registers_of(plain).data.copy_(dict(native.named_parameters())[parameter].data)
    return native, plain


@pytest.mark.parametrize("family", ["dinov2", "dinov3", "lightly-dinov2", "lightly-dinov3"])
def test_dinov2_and_dinov3_compute_what_they_do_with_registers_of_their_own(family: str) -> None:
    option, parameter = (
        ("num_register_tokens", "register_tokens") if "v2" in family else ("n_storage_tokens", "storage_tokens")
    )
    native, ours = native_pair(FAMILIES[family].build, option, parameter)
    masks = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    for arguments in ((images(),), (images(size=48),), (images(), masks)):
        expected, found = (model.forward_features(*arguments) for model in (native, ours))
        for key in expected.keys() - {"masks"}:
            torch.testing.assert_close(found[key], expected[key], msg=key)
    for norm in (True, False):
        expected, found = (
            model.get_intermediate_layers(images(), n=[0, 2], reshape=True, return_class_token=True, norm=norm)
            for model in (native, ours)
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{}, {"dynamic_img_size": True}, {"global_pool": "avg"}])
def test_timm_computes_what_its_own_reg4_model_does(options: dict[str, Any]) -> None:
    native, ours = native_pair(lambda **o: timm(no_embed_class=True, **options, **o), "reg_tokens", "reg_token")
    x = images(size=48) if "dynamic_img_size" in options else images()
    assert ours.num_prefix_tokens == native.num_prefix_tokens == 5
    torch.testing.assert_close(ours.forward_features(x), native.forward_features(x))
    torch.testing.assert_close(ours(x), native(x))
    for norm in (True, False):
        expected, found = (
            model.forward_intermediates(x, norm=norm, return_prefix_tokens=True, intermediates_only=True)
            for model in (native, ours)
        )
        torch.testing.assert_close(found, expected)


def test_timm_gives_registers_the_learning_rate_and_no_weight_decay_as_its_own() -> None:
    from timm.optim import param_groups_layer_decay

    native, ours = native_pair(lambda **o: timm(no_embed_class=True, **o), "reg_tokens", "reg_token")
    found = {}
    for model, name in ((native, "reg_token"), (ours, "attn_plugins_registers.register_tokens.bias")):
        parameter = dict(model.named_parameters())[name]
        exempt = model.no_weight_decay()
        groups = param_groups_layer_decay(model, 0.1, no_weight_decay_list=exempt, layer_decay=0.5)
        (found[name],) = (group for group in groups if any(p is parameter for p in group["params"]))
    own, added = found.values()
    assert added["lr_scale"] == own["lr_scale"] == min(group["lr_scale"] for group in groups)
    assert added["weight_decay"] == own["weight_decay"] == 0


def test_timm_with_a_position_for_cls_resamples_positions_as_without_registers() -> None:
    model = trained(timm(dynamic_img_size=True))
    attn_plugins.patch(model, "registers:num=3")
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(images(size=48))
    attn_plugins.patch(model, "softmax")
    model(images(size=48))
    with_registers, without = seen
    torch.testing.assert_close(with_registers[:, [0, *range(4, 40)]], without)
    attn_plugins.patch(model, "registers:num=3")
    model.set_input_size(img_size=64)
    assert model.pos_embed.shape[1] == 65 and model(images(size=64)).shape == (2, WIDTH)


def test_transformers_dinov2_computes_what_its_model_with_registers_does() -> None:
    native = trained(transformers("Dinov2WithRegisters", num_register_tokens=4))
    ours = hf_dinov2()
    state = native.state_dict()
    registers = state.pop("embeddings.register_tokens")
    ours.load_state_dict(state)
    attn_plugins.patch(ours, "registers:num=4").eval()
    registers_of(ours).data.copy_(registers)
    expected = native(images(), output_hidden_states=True)
    found = ours(images(), output_hidden_states=True)
    keep = [0, *range(5, 21)]
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state[:, keep])
    torch.testing.assert_close(found.pooler_output, expected.pooler_output)
    assert len(found.hidden_states) == len(expected.hidden_states)
    for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a, b[:, keep])
    as_tuple = ours(images(), return_dict=False)
    torch.testing.assert_close(as_tuple[0], found.last_hidden_state)


def test_transformers_attention_maps_leave_registers_out() -> None:
    model = trained(hf_dinov3())
    model.config._attn_implementation = "eager"
    attn_plugins.patch(model, "entmax15+registers:num=2")
    out = model(images(), output_attentions=True)
    assert [tuple(x.shape) for x in out.attentions] == [(2, 3, 17, 17)] * 3
    assert (out.attentions[0].sum(-1) <= 1 + 1e-5).all()


def test_dinov1_outputs_have_no_registers_at_any_size() -> None:
    model = trained(dinov1())
    attn_plugins.patch(model, "registers:num=3")
    for size in (32, 48):
        patches = (size // 8) ** 2
        x = images(size=size)
        assert [tuple(y.shape) for y in model.get_intermediate_layers(x, 2)] == [(2, 1 + patches, WIDTH)] * 2
        whole = model.get_last_selfattention(x)
        assert whole.shape == (2, 3, 1 + patches, 1 + patches)
    full = model.prepare_tokens(x)
    assert full.shape[1] == 1 + 3 + patches
    torch.testing.assert_close(full[:, 1:4], registers_of(model).expand(2, -1, -1))


@pytest.mark.parametrize(
    "build, says",
    [
        (lambda: timm(reg_tokens=2), "has 2 register tokens of its own.* reg_tokens=4"),
        (lambda: eva(num_reg_tokens=2), "has 2 register tokens of its own.* num_reg_tokens=4"),
        (lambda: eva(), "be told of registers.* num_reg_tokens=N"),
        (lambda: dinov2(num_register_tokens=1), "has 1 register tokens.*num_register_tokens=4"),
        (lambda: dinov3(n_storage_tokens=4), "has 4 register tokens.*n_storage_tokens=4"),
        (lambda: transformers("Dinov2WithRegisters"), "has 4 register tokens.*num_register_tokens=4"),
        (lambda: transformers("DINOv3ViT", num_register_tokens=1), "config.num_register_tokens=4"),
    ],
)
def test_models_with_registers_of_their_own_are_refused_and_told_the_native_option(
    build: Callable[..., Any], says: str
) -> None:
    model = build()
    names, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    with pytest.raises(attn_plugins.UnsupportedModelError, match=says):
        attn_plugins.patch(model, "entmax15+registers:num=4")
    assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("num", ["0", "-1", "2.5", "many"])
def test_numbers_that_count_no_tokens_are_refused(num: str) -> None:
    with pytest.raises(ValueError, match="registers: num="):
        attn_plugins.patch(timm(), f"registers:num={num}")


def test_patching_again_keeps_what_was_learned_and_another_number_starts_anew() -> None:
    model = trained(attn_plugins.patch(timm(), "registers:num=4+cb_s"))
    learned = registers_of(model)
    before = model(images())
    attn_plugins.patch(model, "registers:num=4+cb_s")
    assert registers_of(model) is learned
    torch.testing.assert_close(model(images()), before)
    attn_plugins.patch(model, "entmax15+registers:num=4")
    assert registers_of(model) is learned
    assert not [name for name in model.state_dict() if "cb_s" in name]
    attn_plugins.patch(model, "registers:num=2")
    assert registers_of(model).shape == (1, 2, WIDTH)
    with attn_plugins.patched(model, "sparsemax"):
        assert model.num_prefix_tokens == 1
    assert model.num_prefix_tokens == 3 and "registers:num=2" in str(attn_plugins.describe(model))
