"""FrozenViT: features by every option; frozen, and invisible to optimizers, state dicts and DDP."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attn_plugins.checkpoints import CheckpointError, save
from attn_plugins.codebases.features import center_pad
from attn_plugins.probes.backbone import FrozenViT

from .conftest import ARCH, OPTIONS, tiny_vit
from .test_features import images


def frozen(backbone_file: Path, **options: Any) -> FrozenViT:
    return FrozenViT(checkpoint=str(backbone_file), **options)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("layers", [[-1], [1], [0, 2], "four"])
def test_outputs_by_layer_norm_and_cls(layers: Any, norm: bool, backbone_file: Path) -> None:
    x = images(48, 80)
    indices = range(4) if layers == "four" else [layer % 4 for layer in layers]
    with torch.no_grad():
        expected = tiny_vit("entmax15").forward_intermediates(
            x, indices=list(indices), norm=norm, return_prefix_tokens=True, intermediates_only=True
        )
    plain = frozen(backbone_file, out_indices=layers, norm=norm)(x)
    both = frozen(backbone_file, out_indices=layers, norm=norm, cls_token="tuple")(x)
    joined = frozen(backbone_file, out_indices=layers, norm=norm, cls_token="concat")(x)
    for index, (patches, prefix) in enumerate(expected):
        torch.testing.assert_close(plain[index], patches)
        torch.testing.assert_close(both[index][0], patches)
        torch.testing.assert_close(both[index][1], prefix[:, 0])
        torch.testing.assert_close(joined[index][:, :192], patches)
        torch.testing.assert_close(joined[index][:, 192:], prefix[:, 0, :, None, None].expand_as(patches))
    assert len(plain) == len(expected)


def test_any_size_is_padded(backbone_file: Path) -> None:
    x, backbone = images(50, 61), frozen(backbone_file)
    (output,) = backbone(x)
    assert output.shape == (2, 192, 4, 4)
    torch.testing.assert_close(output, backbone(center_pad(x, 16))[0], rtol=0, atol=0)


def test_nothing_of_it_trains_or_is_saved(backbone_file: Path) -> None:
    backbone = frozen(backbone_file)
    probe = nn.Sequential(backbone, nn.Conv2d(192, 2, 1))
    probe.train()
    assert {name.split(".")[0] for name in probe.state_dict()} == {"1"} == {n[0] for n, _ in probe.named_parameters()}
    assert not backbone.model.training
    before = copy.deepcopy(backbone.model.state_dict())
    output = probe[1](probe[0](images(64, 64).requires_grad_())[0])
    output.sum().backward()
    torch.optim.SGD(probe.parameters(), lr=1.0).step()
    torch.testing.assert_close(backbone.model.state_dict(), before, rtol=0, atol=0)


def test_it_moves_with_the_probe_and_its_copy_is_another(backbone_file: Path) -> None:
    backbone = frozen(backbone_file)
    assert next(backbone.double().model.parameters()).dtype == torch.float64
    clone = copy.deepcopy(backbone).float()
    assert next(backbone.model.parameters()).dtype == torch.float64
    assert next(clone.model.parameters()).dtype == torch.float32
    assert next(backbone.to("meta").model.parameters()).device.type == "meta"


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_autocast_is_near_and_gives_float32(dtype: str, backbone_file: Path) -> None:
    x = images(64, 64)
    (exact,), (fast,) = frozen(backbone_file)(x), frozen(backbone_file, autocast=dtype)(x)
    assert fast.dtype == torch.float32 and not torch.equal(fast, exact)
    assert (fast - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_identity_says_what_it_was(backbone_file: Path) -> None:
    import hashlib

    identity = frozen(backbone_file, out_indices=[1], norm=False).identity
    assert identity["sha256"] == hashlib.sha256(backbone_file.read_bytes()).hexdigest()
    assert (identity["plugins"], identity["layers"], identity["norm"]) == ("entmax15", [1], False)
    choices: list[dict[str, Any]] = [
        {},
        {"out_indices": [1]},
        {"norm": False},
        {"cls_token": "concat"},
        {"autocast": "bf16"},
    ]
    digests = [frozen(backbone_file, **choice).identity["features_digest"] for choice in choices]
    assert len(set(digests)) == len(digests), "every choice of features has its own"


@pytest.mark.parametrize("spec", ["entmax15+registers:num=3", "specialization", "last_vit", "entmax_alpha"])
def test_mechanisms_come_with_their_parameters(spec: str, tmp_path: Path) -> None:
    model = tiny_vit(spec)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    save(tmp_path / "m.pth", model, arch=ARCH, arch_options=OPTIONS)
    backbone, x = frozen(tmp_path / "m.pth", cls_token="tuple"), images(64, 64)
    ((patches, cls),) = backbone(x)
    with torch.no_grad():
        tokens = model.forward_features(x)
    torch.testing.assert_close(cls, tokens[:, 0])
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens[:, -16:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": None}, "needs a checkpoint"),
        ({"out_indices": [4]}, "blocks 0 to 3"),
        ({"out_indices": []}, "blocks 0 to 3"),
        ({"out_indices": "five"}, "out_indices='five'"),
        ({"cls_token": "add"}, "cls_token='add'"),
        ({"autocast": "fp8"}, "autocast='fp8'"),
        ({"plugins": "sparsemax"}, "sparsemax"),
        ({"plugins": "entmax51"}, "entmax15"),
        ({"checkpoint": "missing.pth"}, "no such file"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str, backbone_file: Path) -> None:
    with pytest.raises((ValueError, CheckpointError), match=message):
        FrozenViT(**({"checkpoint": str(backbone_file)} | options))


def test_random_weights_only_when_asked() -> None:
    backbone = FrozenViT(arch=ARCH, arch_options=OPTIONS, random_init=True)
    assert backbone.identity["sha256"] is None
    assert backbone(images(64, 64))[0].shape == (2, 192, 4, 4)
