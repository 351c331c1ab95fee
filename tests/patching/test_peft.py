"""peft around a patched model, and a patch inside peft's: what is trained, what is saved, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import attn_plugins
from attn_plugins.checkpoints import recorded_spec, save
from attn_plugins.patching import spec_of

timm = pytest.importorskip("timm", reason="pip install timm")
peft = pytest.importorskip("peft", reason="pip install peft")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vit() -> Any:
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 2}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(10)  # scores at which entmax gives exact zeros
    return model


def lora(model: nn.Module, *saved: str, target: tuple[str, ...] = ("qkv", "proj")) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=[*target], modules_to_save=[*saved], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def test_before_and_after_a_patch_the_same_is_computed_and_merged(tmp_path: Path) -> None:
    first = lora(attn_plugins.patch(vit(), "entmax15")).eval()
    then = attn_plugins.patch(lora(vit()), "entmax15").eval()
    expected = first(IMAGES)
    assert torch.equal(then(IMAGES), expected)
    assert not torch.allclose(lora(vit()).eval()(IMAGES), expected, atol=1e-3)
    for model in (first, then):
        assert attn_plugins.verify(model, IMAGES).ok and spec_of(model) == "entmax15"
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(IMAGES), expected, atol=1e-4, rtol=1e-4)
        assert spec_of(merged) == "entmax15"
        assert recorded_spec(save(tmp_path / "merged.pth", merged))[0] == "entmax15"


@pytest.mark.parametrize("spec", ["entmax15:scale=learnable", "entmax_alpha"])
def test_what_modules_to_save_copies_is_what_computes(spec: str, tmp_path: Path) -> None:
    model = lora(attn_plugins.patch(vit(), spec), "attn_plugins_normalizer")
    model.train()(IMAGES).square().mean().backward()
    learned = {name: p for name, p in model.named_parameters() if "normalizer.modules_to_save" in name}
    assert len(learned) == 2
    with torch.no_grad():
        for parameter in learned.values():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
            parameter.add_(torch.tensor([0.5, -0.5, 1.0]))
    model.eval()
    plain = attn_plugins.patch(vit(), spec)
    for block, parameter in zip(plain.blocks, learned.values(), strict=True):
        next(block.attn.attn_plugins_normalizer.parameters()).data.copy_(parameter)
    torch.testing.assert_close(model(IMAGES), lora(plain).eval()(IMAGES))
    with model.disable_adapter():
        torch.testing.assert_close(model(IMAGES), attn_plugins.patch(vit(), spec).eval()(IMAGES))

    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(attn_plugins.patch(vit(), spec), tmp_path).eval()
    torch.testing.assert_close(again(IMAGES), model(IMAGES))
    torch.testing.assert_close(model.merge_and_unload()(IMAGES), again(IMAGES), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", ["entmax_alpha", "entmax15+registers:num=2", "entmax_anneal:steps=3"])
def test_what_an_adapters_file_would_not_have_is_refused(spec: str) -> None:
    model = lora(vit(), target=("fc1",))
    before = model.state_dict().keys()
    with pytest.raises(ValueError, match="is a PeftModel already, which would neither synchronize nor save them"):
        attn_plugins.patch(model, spec)
    assert model.state_dict().keys() == before and spec_of(model) is None


@pytest.mark.parametrize(("spec", "part"), [("softmax+gated", "proj"), ("softmax+specialization", "qkv")])
def test_mechanisms_on_layers_that_an_adapter_wraps_are_refused(spec: str, part: str) -> None:
    inside = lora(vit()).get_base_model()
    with pytest.raises(ValueError, match=f"{part} of Attention is wrapped by an adapter"):
        attn_plugins.patch(inside, spec)


def test_mechanisms_find_the_model_inside_a_wrapper() -> None:
    """Which answers for whatever attribute of it is asked for."""
    first = lora(attn_plugins.patch(vit(), "entmax15+cb_s")).eval()
    then = attn_plugins.patch(lora(vit()).get_base_model(), "entmax15+cb_s")
    assert attn_plugins.Monitor(first).spec == "entmax15+cb_s"
    compiled: Any = torch.compile(vit(), backend="eager")
    attn_plugins.patch(compiled, "entmax15+registers:num=2")
    assert compiled(IMAGES).shape == then(IMAGES).shape
