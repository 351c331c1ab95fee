"""Factors in a file: who may have them, what they set, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import attn_plugins
from attn_plugins.patching import find_attention
from attn_plugins.patching.scales import Scales, fingerprint

FACTORS = ((0.2, 0.4, 0.6), (0.3, 0.5, 1.7))
OPTIONS: dict[str, Any] = {
    "depth": 2,
    "img_size": 32,
    "patch_size": 16,
    "embed_dim": 24,
    "num_heads": 3,
    "num_classes": 0,
}


def vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **OPTIONS).eval()


def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def scales(spec: str = "entmax15:scale=per_head") -> Scales:
    return Scales(spec, FACTORS, fingerprint(find_attention(vit())), {"images": 12})


def factors(model: nn.Module) -> list[list[float]]:
    found = [value.exp() for name, value in model.state_dict().items() if name.endswith("log_scale")]
    return [[round(value, 5) for value in layer.tolist()] for layer in found]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    scales().write(tmp_path / "scales.json")
    return tmp_path / "scales.json"


def test_a_file_sets_the_factors_and_the_spec_says_that_there_are_some(file: Path) -> None:
    model = attn_plugins.patch(vit(), "entmax15", scales=file)
    assert [line.spec for line in attn_plugins.describe(model)] == ["entmax15:scale=per_head"] * 2
    assert factors(model) == [list(layer) for layer in FACTORS]
    assert Scales.read(file) == scales()
    with attn_plugins.patched(vit(), "entmax15+registers:num=2", scales=scales()) as other:
        assert factors(other) == [list(layer) for layer in FACTORS]


def test_they_can_be_learned_on_and_put_anew(file: Path) -> None:
    model = attn_plugins.patch(vit(), "entmax15:scale=learnable", scales=file)
    learned = [p for name, p in model.named_parameters() if name.endswith("log_scale")]
    assert len(learned) == 2
    learned[0].data.zero_()
    assert factors(attn_plugins.patch(model, "entmax15:scale=learnable"))[0] == [1, 1, 1]
    assert factors(attn_plugins.patch(model, "entmax15:scale=learnable", scales=file))[0] == list(FACTORS[0])


@pytest.mark.parametrize("how", [{"spec": "entmax15@1"}, {"spec": "entmax15", "layers": [1]}])
def test_some_layers_get_their_own(how: dict[str, Any], file: Path) -> None:
    assert factors(attn_plugins.patch(vit(), **how, scales=file)) == [list(FACTORS[1])]


def test_another_backbone_is_refused_unless_it_is_asked_for(file: Path) -> None:
    model: Any = vit(seed=1)
    for block in model.blocks:
        block.attn.qkv.weight.data.mul_(1.02)
    with pytest.raises(ValueError, match=r"fitted on another backbone: .* Calibrate this one"):
        attn_plugins.patch(model, "entmax15", scales=file)
    assert attn_plugins.describe(model)[0].spec is None
    assert factors(attn_plugins.patch(model, "entmax15", scales=file, other_backbone=True))
    torch.manual_seed(0)
    deeper = timm.create_model("vit_tiny_patch16_224", **OPTIONS | {"depth": 3})
    with pytest.raises(ValueError, match=r"2 layers with \[3, 3\] heads; the model has \[3, 3, 3\]"):
        attn_plugins.patch(deeper, "entmax15", scales=file, other_backbone=True)


def test_a_backbone_is_known_after_rounding_and_through_another_codebase(file: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = vit().half()
    assert factors(attn_plugins.patch(model, "entmax15", scales=file))
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=32, patch_size=16
    )
    other = transformers.ViTModel(config).eval()
    theirs = [site.module for site in find_attention(other)]
    ours = [site.module for site in find_attention(vit())]
    for attention, own in zip(theirs, ours, strict=True):
        for part in ("weight", "bias"):
            values = own.get_parameter(f"qkv.{part}").chunk(3)
            for name, value in zip(("q", "k", "v"), values, strict=True):
                found = [m for n, m in attention.named_modules() if n.startswith(name) and isinstance(m, nn.Linear)]
                getattr(found[0], part).data.copy_(value)
    assert fingerprint(find_attention(other))["norms"] == pytest.approx(fingerprint(find_attention(vit()))["norms"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sparsemax", "fitted for entmax15, and sparsemax was asked for"),
        ("entmax15:scale=0.5", "has a scale already"),
        ("entmax15:scale=asentmax", "has a scale already"),
    ],
)
def test_another_normalizer_is_refused(spec: str, message: str, file: Path) -> None:
    with pytest.raises(ValueError, match=message):
        attn_plugins.patch(vit(), spec, scales=file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_plugins_scales": 2}, "holds no scales"),
        ({"layers": []}, "layers are lists of numbers above 0"),
        ({"layers": [[0.1, -1, 0.2], [1, 1, 1]]}, "layers are lists of numbers above 0"),
        ({"layers": [[0.1, True, 0.2], [1, 1, 1]]}, "layers are lists of numbers above 0"),
        ({"backbone": None}, "no norms of 2 layers"),
        ({"backbone": {"norms": [1.0]}}, "no norms of 2 layers"),
        ({"spec": "entmax15@1"}, "says something for each layer"),
        ({"spec": "entmax17"}, "unknown normalizer"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(change: dict[str, Any], message: str, file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        attn_plugins.patch(vit(), "entmax15", scales=file)


def test_a_name_that_comes_with_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        attn_plugins.patch(vit(), "entmax15", scales="dinov9")
    with pytest.raises(ValueError, match="no readable JSON"):
        attn_plugins.patch(vit(), "entmax15", scales=tmp_path / "absent.json")
