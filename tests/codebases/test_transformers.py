"""transformers' vision models, built from a config: every attention implementation, and true attention maps."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import entmax
import pytest
import torch
from torch import Tensor, nn

import attn_plugins

from .twin import assert_same_outputs, normalized_by

transformers = pytest.importorskip("transformers", reason="transformers (the test extra) is not installed")

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
DROPOUT = {"attention_probs_dropout_prob": 0.3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTModel": ("ViTConfig", DROPOUT),
    "Dinov2Model": ("Dinov2Config", DROPOUT),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", DROPOUT),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {"num_register_tokens": 4}),
    "DeiTModel": ("DeiTConfig", DROPOUT),
    "BeitModel": ("BeitConfig", {**DROPOUT, "use_relative_position_bias": True}),
    "SiglipVisionModel": ("SiglipVisionConfig", {"attention_dropout": 0.3}),
    "CLIPVisionModel": ("CLIPVisionConfig", {"attention_dropout": 0.3}),
    "ViTMAEModel": ("ViTMAEConfig", {"mask_ratio": 0.0}),
    "IJepaModel": ("IJepaConfig", DROPOUT),
    "Data2VecVisionModel": ("Data2VecVisionConfig", {"use_relative_position_bias": True}),
}
POOLED = {"SiglipVisionModel"}  # a pooling head after the last layer, which is not patched


def build(name: str, implementation: str = "sdpa") -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    config, options = MODELS[name]
    model = getattr(transformers, name)(
        getattr(transformers, config)(**{**SIZES, **options}, attn_implementation=implementation)
    )
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
        elif "lambda" in parameter_name or "layer_scale" in parameter_name:
            nn.init.ones_(parameter)
    return model.eval(), torch.randn(2, 3, 32, 32)


def features(model: nn.Module, image: Tensor) -> Tensor:
    torch.manual_seed(1)
    out: Tensor = model(image).last_hidden_state
    return out


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_softmax_and_entmax(name: str, implementation: str) -> None:
    model, image = build(name, implementation)
    dense, trained = features(model, image), features(model.train(), image)
    model.eval()
    with normalized_by(entmax.entmax15):
        sparse = features(model, image)
    assert (sparse - dense).abs().max() > 1e-2
    attn_plugins.patch(model, "softmax")
    assert_same_outputs(model, dense, lambda m: features(m, image))
    assert_same_outputs(model.train(), trained, lambda m: features(m, image))
    attn_plugins.patch(model.eval(), "entmax15")
    assert_same_outputs(model, sparse, lambda m: features(m, image))
    lines = [line for line in attn_plugins.describe(model) if line.note == ""]
    assert len(lines) == 2 and all(line.spec == "entmax15" for line in lines)
    attn_plugins.unpatch(model)
    assert torch.equal(features(model, image), dense)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"Data2VecVisionModel"}))
def test_output_attentions_are_the_weights_that_were_used(name: str, implementation: str) -> None:
    model, image = build(name, "eager")
    torch.manual_seed(1)
    with normalized_by(entmax.entmax15):
        expected = model(image, output_attentions=True).attentions
    model.set_attn_implementation(implementation)
    attn_plugins.patch(model, "entmax15")
    torch.manual_seed(1)
    maps = model(image, output_attentions=True).attentions
    assert len(maps) == len(expected) == 2 and (maps[0] == 0).any()
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=0)


def test_no_map_is_computed_that_nobody_asked_for() -> None:
    model, image = build("ViTModel")
    attn_plugins.patch(model, "entmax15")
    seen = []
    model.layers[0].attention.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    model(image)
    model(image, output_attentions=True)
    assert seen[0] is None and isinstance(seen[1], Tensor)


def test_layers_that_are_not_patched_go_on_as_they_were() -> None:
    model, image = build("ViTModel")
    first = attn_plugins.patch(copy.deepcopy(model), "entmax15", layers=0)
    with normalized_by(entmax.entmax15):
        everywhere = features(model, image)
    assert not torch.allclose(features(first, image), everywhere)
    attn_plugins.patch(first, "entmax15", layers=1)
    assert_same_outputs(first, everywhere, lambda m: features(m, image))


def test_implementation_chosen_after_patching() -> None:
    """Flash kernels need a GPU; a patched layer does not ask for them."""
    model, image = build("ViTModel")
    attn_plugins.patch(model, "entmax15")
    sparse = features(model, image)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(features(model, image), sparse)
    model.config._attn_implementation_internal = "flash_attention_2"
    torch.testing.assert_close(features(model, image), sparse)


def test_the_config_of_a_patched_layer_reads_as_before() -> None:
    model, _ = build("ViTModel")
    attn_plugins.patch(model, "entmax15")
    config = model.layers[0].attention.config
    assert config.hidden_size == 48 and copy.copy(config).hidden_size == 48
    assert model.config._attn_implementation == "sdpa"
    attn_plugins.unpatch(model)
    assert model.layers[0].attention.config is model.config


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_masks_are_kept(implementation: str) -> None:
    config = transformers.Siglip2VisionConfig(**SIZES, attn_implementation=implementation)
    config.num_patches = 16
    torch.manual_seed(0)
    model = transformers.Siglip2VisionModel(config).eval()
    inputs = {
        "pixel_values": torch.randn(2, 16, 3 * 8 * 8),
        "pixel_attention_mask": torch.tensor([[1] * 16, [1] * 12 + [0] * 4]),
        "spatial_shapes": torch.tensor([[4, 4], [4, 3]]),
    }
    with normalized_by(entmax.entmax15):
        expected = model(**inputs).last_hidden_state
    attn_plugins.patch(model, "entmax15")
    actual = model(**inputs).last_hidden_state
    torch.testing.assert_close(actual[0], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(actual[1, :12], expected[1, :12], atol=1e-5, rtol=0)


def test_pickle_in_a_fresh_process_state(tmp_path: Any) -> None:
    model, image = build("Dinov2Model")
    attn_plugins.patch(model, "entmax15")
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(features(loaded, image), features(model, image))
    model.save_pretrained(tmp_path)
    again = attn_plugins.patch(type(model).from_pretrained(tmp_path).eval(), "entmax15")
    assert torch.equal(features(again, image), features(model, image))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model, image = build("ViTModel")
    attn_plugins.patch(model.train(), "entmax15")
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        features(model, image.requires_grad_()).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for without, with_checkpointing in zip(*gradients, strict=True):
        torch.testing.assert_close(without, with_checkpointing)


@pytest.mark.slow
def test_torch_compile() -> None:
    model, image = build("DINOv3ViTModel")
    attn_plugins.patch(model, "entmax15")
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(features(compiled, image), features(model, image))
    torch.compiler.reset()
