"""timm's attention classes, patched: softmax changes nothing, entmax15 gives what the entmax package gives."""

from __future__ import annotations

import warnings
from typing import Any

import entmax
import pytest
import timm
import torch
from timm.layers import set_fused_attn
from torch import nn

import attn_plugins
import attn_plugins.checkpoints

from .twin import assert_same_outputs, normalized_by

TINY: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 64}

# Name, options that make it small, adapter of its attention.
MODELS: list[tuple[str, dict[str, Any], set[str]]] = [
    ("vit_tiny_patch16_224", TINY, {"sdpa"}),
    ("vit_small_patch16_224", {**TINY, "qk_norm": True, "scale_attn_norm": True}, {"sdpa"}),
    ("vit_tiny_patch16_224", {**TINY, "attn_layer": "diff", "num_heads": 4, "embed_dim": 64}, {"sdpa"}),
    ("deit_tiny_distilled_patch16_224", TINY, {"sdpa"}),
    ("deit3_small_patch16_224", TINY, {"sdpa"}),
    ("vit_small_patch14_reg4_dinov2", {**TINY, "img_size": 56}, {"sdpa"}),
    ("vit_small_patch16_dinov3", TINY | {"embed_dim": 96}, {"sdpa"}),
    ("eva02_tiny_patch14_224", TINY | {"img_size": 56, "embed_dim": 96}, {"sdpa"}),
    ("beit_base_patch16_224", TINY, {"sdpa"}),
    ("beitv2_base_patch16_224", TINY, {"sdpa"}),
    ("vit_base_patch16_clip_224", TINY, {"sdpa"}),
    ("vit_relpos_small_patch16_224", TINY, {"sdpa"}),
    ("samvit_base_patch16_224", TINY | {"global_attn_indexes": (1,), "window_size": 2}, {"sdpa"}),
    ("naflexvit_base_patch16_gap", {"depth": 2, "embed_dim": 48, "num_heads": 3}, {"sdpa"}),
    ("hiera_tiny_224", {"img_size": 64, "embed_dim": 24, "stages": (1, 1, 1, 1)}, {"sdpa"}),
    ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 24, "depths": (2, 1, 1, 1)}, {"sdpa"}),
    ("swinv2_tiny_window8_256", {"img_size": 64, "embed_dim": 24, "depths": (2, 1, 1, 1)}, {"softmax"}),
    ("mvitv2_tiny", {"img_size": 64}, {"softmax"}),
    ("cait_xxs24_224", TINY, {"sdpa", "softmax"}),
    ("xcit_nano_12_p16_224", TINY, {"sdpa"}),
    ("twins_svt_small", {"img_size": 64, "depths": (1, 1, 2, 1)}, {"sdpa"}),
    ("twins_pcpvt_small", {"img_size": 64, "depths": (1, 1, 2, 1)}, {"sdpa"}),
    ("pvt_v2_b0", {"depths": (1, 1, 1, 1)}, {"sdpa"}),
    ("pit_ti_224", {"img_size": 64, "depth": (1, 1, 1)}, {"sdpa"}),
    ("nest_tiny", {"img_size": 64}, {"sdpa"}),
    ("tnt_s_patch16_224", {"img_size": 64, "depth": 1}, {"softmax"}),
    ("crossvit_tiny_240", {}, {"sdpa", "softmax"}),
    ("visformer_tiny", {"img_size": 64}, {"sdpa"}),
    ("test_maxvit", {"img_size": 64}, {"sdpa"}),
    ("davit_tiny", {"depths": (1, 1, 1, 1)}, {"sdpa", "softmax"}),
    ("tiny_vit_5m_224", {"depths": (1, 1, 1, 1)}, {"sdpa"}),
    ("levit_128s", {"img_size": 64}, {"softmax"}),
    ("gcvit_xxtiny", {"img_size": 64}, {"softmax"}),
]


def build(name: str, options: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=5, **options)
    # Weights as if trained: at initialisation attention is nearly uniform, and LayerScale or zero norms hide it.
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
        elif not name.endswith("bias"):
            nn.init.ones_(parameter)
    side = options.get("img_size") or model.default_cfg["input_size"][-1]
    return model, torch.randn(2, 3, side, side)


LARGE = ("mvitv2", "naflexvit", "swin", "davit", "xcit", "hiera", "crossvit", "twins")
EVERY = [
    pytest.param(*m, id=f"{m[0]}-{i}", marks=[pytest.mark.slow] * m[0].startswith(LARGE)) for i, m in enumerate(MODELS)
]


@pytest.mark.parametrize(("name", "options", "adapters"), EVERY)
def test_softmax_and_entmax(name: str, options: dict[str, Any], adapters: set[str]) -> None:
    model, image = build(name, options)

    def train_step(model: nn.Module) -> torch.Tensor:
        torch.manual_seed(1)
        out: torch.Tensor = model.train()(image)
        return out

    def evaluate(model: nn.Module) -> torch.Tensor:
        out: torch.Tensor = model.eval()(image)
        return out

    trained = train_step(model)  # first: batch norms change their statistics, and not a second time by as much
    evaluated = evaluate(model)
    with normalized_by(entmax.entmax15):
        sparse = evaluate(model)
    assert (sparse - evaluated).abs().max() > 1e-3 * evaluated.abs().max()

    attn_plugins.patch(model, "softmax")
    assert {line.adapter for line in attn_plugins.describe(model)} == adapters
    assert_same_outputs(model, evaluated, evaluate)
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, sparse, evaluate, atol=3e-5)
    attn_plugins.patch(model, "softmax")
    assert_same_outputs(model, trained, train_step)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "vit_relpos_small_patch16_224"])
def test_without_the_fused_path(name: str) -> None:
    set_fused_attn(False)
    try:
        model, image = build(name, TINY)
    finally:
        set_fused_attn(True)
    assert not any(getattr(module, "fused_attn", False) for module in model.modules())
    model.eval()
    with normalized_by(entmax.entmax15):
        sparse = model(image)
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, sparse, lambda m: m(image))


def test_dropout_of_attention_weights_draws_the_same_numbers() -> None:
    model, image = build("vit_tiny_patch16_224", {**TINY, "attn_drop_rate": 0.3, "drop_path_rate": 0.2})

    def train_step(model: nn.Module) -> torch.Tensor:
        torch.manual_seed(1)
        out: torch.Tensor = model.train()(image)
        return out

    dense = train_step(model)
    assert not torch.equal(dense, model.eval()(image))
    with normalized_by(entmax.entmax15):
        sparse = train_step(model)
    attn_plugins.patch(model, "softmax")
    assert_same_outputs(model, dense, train_step)
    attn_plugins.patch(model, "entmax15")
    assert_same_outputs(model, sparse, train_step)


def test_masks_of_variable_resolution_are_kept() -> None:
    """NaFlexViT pads images of different sizes and masks the padding out of attention."""
    model, _ = build("naflexvit_base_patch16_gap", {"depth": 2, "embed_dim": 48, "num_heads": 3})
    patches = torch.randn(2, 9, 16 * 16 * 3)
    grid = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"), -1).reshape(1, 9, 2)
    valid = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    inputs = {"patches": patches, "patch_coord": grid.repeat(2, 1, 1), "patch_valid": valid}
    attn_plugins.patch(model.eval(), "entmax15")
    before = model(inputs)
    patches[1, 6:] += 100
    torch.testing.assert_close(model(inputs), before)


class Linearised(nn.Module):
    """Attention without rows of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv = 3, nn.Linear(12, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        out: torch.Tensor = q.softmax(-1) @ (k.softmax(-2).mT @ v)
        return out


def test_attention_that_no_adapter_knows_is_named_once() -> None:
    model, _ = build("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 12, "depth": 4, "num_heads": 3})
    for index in (0, 1):
        model.blocks[index].attn = Linearised()
    with pytest.warns(UserWarning, match=r"blocks\.0\.attn \(Linearised: .*\), blocks\.1\.attn \(Linearised") as seen:
        attn_plugins.patch(model, "entmax15")
    assert len(seen) == 1
    unknown = [line.path for line in attn_plugins.describe(model) if line.note.startswith("unreached")]
    assert unknown == ["blocks.0.attn", "blocks.1.attn"]


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224"])
def test_pooling_heads_are_patched_only_by_name(name: str) -> None:
    model, image = build(name, TINY)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attn_plugins.patch(model, "entmax15")
    specs = {line.path: (line.spec, line.note) for line in attn_plugins.describe(model)}
    assert specs["attn_pool"] == (None, "pooling head")
    assert specs["blocks.1.attn"] == ("entmax15", "")
    with normalized_by(entmax.entmax15):
        everywhere = attn_plugins.unpatch(model)(image)
    attn_plugins.patch(model, "entmax15", layers=["attn_pool", 0, -1])
    assert_same_outputs(model, everywhere, lambda m: m(image))


def test_a_model_whose_only_attention_pools_says_so() -> None:
    model = nn.Sequential(timm.layers.AttentionPoolLatent(48, num_heads=3))
    with pytest.raises(attn_plugins.UnsupportedModelError, match="layers="):
        attn_plugins.patch(model, "entmax15")


def test_gradient_checkpointing() -> None:
    model, image = build("vit_tiny_patch16_224", TINY)
    attn_plugins.patch(model, "entmax15")
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(image).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for without, with_checkpointing in zip(*gradients, strict=True):
        torch.testing.assert_close(without, with_checkpointing)


def test_a_timm_that_is_too_old_to_build_from_is_refused_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: nn.Module, img_size: int = 224, patch_size: int = 16) -> None:
        """As of timm 0.4: no sizes but one."""

    monkeypatch.setattr(timm.models.vision_transformer.VisionTransformer, "__init__", init)
    monkeypatch.setattr(timm, "__version__", "0.4.12")
    monkeypatch.delenv("DINOV2_ROOT", raising=False)  # or its own code is taken
    for arch in ("timm/vit_tiny_patch16_224", "dinov2/vit_small"):
        with pytest.raises(attn_plugins.UnsupportedModelError, match=r"timm 0\.4\.12 .* takes timm 0\.9\.16"):
            attn_plugins.checkpoints.build(arch)
