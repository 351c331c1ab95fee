"""LaSt-ViT against its equations and its published code, CB's fixed points, the gate's start."""

import ast
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import attn_plugins
from attn_plugins.checkpoints import CheckpointError, build, save
from attn_plugins.mechanisms.broadcasting import broadcast_context
from attn_plugins.mechanisms.last_vit import (
    VARIANTS,
    LastViT,
    low_pass,
    selected_features,
    smoothed_features,
    stable_features,
)
from attn_plugins.patching import spec_of
from attn_plugins.patching.record import METADATA_KEY
from attn_plugins.record import RECORD, encode

from .tiny_vits import FAMILIES, WIDTH, dinov3, images, timm, trained


def dft(channels: int) -> Tensor:
    """The matrix of the discrete Fourier transform."""
    index = torch.arange(channels, dtype=torch.float64)
    return torch.exp(-2j * math.pi * index[:, None] * index / channels)


@pytest.mark.parametrize("channels", [16, 17])
@pytest.mark.parametrize("sigma", [None, 1.3])
def test_the_low_pass_filter_is_a_gaussian_over_frequencies(channels: int, sigma: float | None) -> None:
    x = torch.randn(3, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frequency = torch.arange(channels)
    frequency = torch.minimum(frequency, channels - frequency).double()
    gain = torch.exp(-(frequency**2) / (2 * (sigma or channels**0.5) ** 2))
    matrix = dft(channels)
    expected = ((x.to(matrix.dtype) @ matrix.T * gain) @ matrix.conj() / channels).real
    torch.testing.assert_close(low_pass(x, sigma).double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(low_pass(torch.ones(channels)), torch.ones(channels))


@pytest.mark.parametrize("k", [1, 3])
def test_stable_features_follow_equation_5_channel_by_channel(k: int) -> None:
    x = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(1))
    smooth, eps = low_pass(x), 1e-6
    expected = torch.empty(2, 12)
    for image in range(2):
        for channel in range(12):
            score = [
                float(smooth[image, n, channel] / (abs(smooth[image, n, channel] - x[image, n, channel]) + eps))
                for n in range(9)
            ]
            best = sorted(range(9), key=lambda n: -score[n])[:k]
            expected[image, channel] = sum(x[image, n, channel] for n in best) / k
    torch.testing.assert_close(stable_features(x, k), expected)


def filtered(x: Tensor) -> Tensor:
    """The authors' low-pass filter, by the matrix of the Fourier transform and a kernel centred as theirs."""
    channels = x.shape[-1]
    matrix = dft(channels)
    frequency = torch.arange(channels)
    frequency = torch.where(frequency < channels / 2, frequency, frequency - channels).double()
    gain = torch.exp(-0.5 * ((frequency + (channels % 2 == 0)) / channels**0.5) ** 2)
    return ((x.to(matrix.dtype) @ matrix.T * gain) @ matrix.conj() / channels).real


@pytest.mark.parametrize("channels", [16, 17])
def test_the_codes_of_2025_and_2026(channels: int) -> None:
    x = torch.randn(2, 9, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    smooth = filtered(x)
    torch.testing.assert_close(smoothed_features(x).double(), smooth.mean(1), atol=1e-6, rtol=0)
    score = x / (smooth - x).abs()
    expected = torch.stack([torch.stack([x[b, score[b, :, c].argmax(), c] for c in range(channels)]) for b in range(2)])
    torch.testing.assert_close(selected_features(x), expected)
    best = score.argsort(dim=1, descending=True)[:, :3]
    torch.testing.assert_close(selected_features(x, k=3), x.gather(1, best).mean(1))


AUTHORS = os.environ.get("LAST_VIT_ROOT")


@pytest.mark.skipif(AUTHORS is None, reason="LAST_VIT_ROOT names no clone of ChengShiest/LAST-ViT")
@pytest.mark.parametrize("commit", ["434f6ce", "8c126e0"])
def test_each_variant_is_the_code_of_its_commit(commit: str) -> None:
    """Its class `dense_vit`, of torchvision's ViT-B/16, run beside the same model patched."""
    models = pytest.importorskip("torchvision.models.vision_transformer")
    show = ["git", "-C", str(AUTHORS), "show", f"{commit}:cls_pretrain/conf.py"]
    source = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    (found,) = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "dense_vit"]
    known = {"torch": torch, "VisionTransformer": models.VisionTransformer}
    exec(compile(ast.Module([found], []), "conf.py", "exec"), known)
    torch.manual_seed(0)
    # Their kernel has 768 channels, whatever the model has.
    theirs = known["dense_vit"](
        image_size=32, patch_size=8, num_layers=1, num_heads=12, hidden_dim=768, mlp_dim=64, num_classes=0
    ).eval()
    with torch.no_grad():
        tokens = theirs.encoder(
            torch.cat([theirs.class_token.expand(2, -1, -1), theirs._process_input(images())], dim=1)
        )
        expected = theirs(images())[0]
    ours = VARIANTS[commit](tokens[:, 1:])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    others = [VARIANTS[name](tokens[:, 1:]) for name in VARIANTS.keys() - {commit}]
    assert all((other - expected).abs().max() > 0.1 for other in others)


def written_before(file: Path, written: str) -> dict[str, Tensor]:
    """Give a file the spec that releases wrote before there were variants, wherever it says its spec."""
    content = torch.load(file, weights_only=True)
    (key,) = [key for key, value in content.items() if isinstance(value, dict) and any("blocks." in k for k in value)]
    state = dict(content[key])
    for name in [name for name in state if name.endswith(RECORD)]:
        state[name] = encode({"spec": written})
    torch.save(content | {key: state, METADATA_KEY: content[METADATA_KEY] | {"spec": written}}, file)
    return state


def test_bare_names_mean_what_they_meant_in_files_and_the_current_code_in_new_patches(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 1,
        "num_heads": 3,
        "init_values": 1.0,
    }
    make: dict[str, Any] = {"arch": "timm/vit_tiny_patch16_224", "arch_options": options}
    model = attn_plugins.patch(timm(depth=1), "last_vit:k=2")
    assert spec_of(model) == "last_vit:k=2,variant=8c126e0"
    for meant, written in (("paper", "last_vit:k=2"), ("434f6ce", "last_vit:published=true")):
        file = tmp_path / f"{meant}.pth"
        built = attn_plugins.patch(timm(depth=1), f"last_vit:variant={meant}" + ",k=2" * (meant == "paper"))
        save(file, built, **make)
        state = written_before(file, written)
        for plugins in ("auto", written):
            read, _ = build(make["arch"], file, plugins)
            assert spec_of(read) == spec_of(built)
            again = tmp_path / "again.pth"
            save(again, read, **make)
            assert spec_of(build(make["arch"], again, "auto")[0]) == spec_of(read)
        with pytest.raises(CheckpointError, match=f"variant={meant}.*variant=8c126e0"):
            build(make["arch"], file, "last_vit:variant=8c126e0")
        built.load_state_dict(state)
        with pytest.raises(ValueError, match="they mean something only with their own attention"):
            model.load_state_dict(state)


def test_names_that_contradict_each_other() -> None:
    assert LastViT(published=True).variant == "434f6ce" and LastViT().variant == "paper" and LastViT().options["k"] == 7
    for spec, says in (
        ("last_vit:published=true,variant=paper", "variant=434f6ce, not paper"),
        ("last_vit:variant=2026", "choose from paper, 434f6ce, 8c126e0"),
        ("last_vit:eps=0.1", "eps=0.1 is of the paper's Equation 5"),
    ):
        with pytest.raises(ValueError, match=says):
            attn_plugins.patch(timm(), spec)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_replaces_cls_and_nothing_else(name: str) -> None:
    family = FAMILIES[name]
    model = attn_plugins.patch(trained(family.build()), "softmax")
    with torch.no_grad():
        _, patches = family.read(model, images())
        attn_plugins.patch(model, "last_vit:k=2,sigma=3.0")
        cls, same = family.read(model, images())
        assert torch.equal(same, patches)
        torch.testing.assert_close(cls, selected_features(patches, 2, 3.0))
        attn_plugins.patch(model, "last_vit:k=2,sigma=3.0,variant=paper")
        torch.testing.assert_close(family.read(model, images())[0], stable_features(patches, 2, 3.0))
        attn_plugins.patch(model, "last_vit:published=true")
        torch.testing.assert_close(family.read(model, images())[0], smoothed_features(patches))


def test_it_reads_patches_and_not_registers() -> None:
    model = trained(attn_plugins.patch(timm(), "registers:num=2+last_vit:k=4"))
    tokens = model.forward_features(images())
    torch.testing.assert_close(tokens[:, 0], selected_features(tokens[:, 3:], 4))


def test_more_patches_than_there_are_and_half_precision() -> None:
    x = torch.randn(1, 3, 8)
    torch.testing.assert_close(stable_features(x, 7), x.mean(1))
    model = trained(attn_plugins.patch(timm(), "last_vit")).bfloat16()
    assert model(images().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("spec", ["last_vit:k=0", "last_vit:k=1.5", "last_vit:sigma=-1", "last_vit:sigma=wide"])
def test_last_vit_refuses_what_has_no_meaning(spec: str) -> None:
    with pytest.raises(ValueError, match="k is at least 1 and sigma above 0"):
        attn_plugins.patch(timm(), spec)


def test_last_vit_refuses_models_that_norm_cls_apart() -> None:
    with pytest.raises(attn_plugins.UnsupportedModelError, match="untie_cls_and_patch_norms=False"):
        attn_plugins.patch(dinov3(untie_cls_and_patch_norms=True), "last_vit")


def test_context_broadcasting_fixed_points() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    constant = x[:, :1].expand(-1, 5, -1)
    torch.testing.assert_close(broadcast_context(constant), constant)
    torch.testing.assert_close(broadcast_context(x).mean(1), x.mean(1))
    deviation = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(broadcast_context(x) - x.mean(1, keepdim=True), deviation / 2)
    assert torch.equal(broadcast_context(x, torch.zeros(8, dtype=x.dtype)), x)
    doubled = broadcast_context(constant, torch.ones(8, dtype=x.dtype))
    torch.testing.assert_close(doubled, 2 * constant)


def test_each_mlp_gives_each_image_its_own_mean() -> None:
    model = trained(attn_plugins.patch(timm(), "context_broadcasting"))
    seen = []
    model.blocks[0].mlp.fc2.register_forward_hook(lambda module, args, out: seen.append(out))
    model.blocks[0].mlp.register_forward_hook(lambda module, args, out: seen.append(out))
    model(images(3))
    torch.testing.assert_close(seen[1], (seen[0] + seen[0].mean(1, keepdim=True)) / 2)


def test_the_gate_opens_and_closes() -> None:
    model = trained(attn_plugins.patch(timm(), "gated"))
    gates = [block.attn.proj.attn_plugins_gated for block in model.blocks]
    seen = []
    for block in model.blocks:
        block.attn.proj.register_forward_hook(lambda module, args, out: seen.append(out - module.bias))
    for gate in gates:
        gate.weight.data.zero_()
        gate.bias.data.fill_(-200)
    model(images())
    assert all((out.abs() < 1e-6).all() for out in seen), "a closed gate lets nothing through"
    assert gates[0].weight.shape == (WIDTH, WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["entmax15+gated+specialization", "entmax15+registers+cb_s+last_vit"])
def test_compiled_whole(spec: str) -> None:
    model = trained(attn_plugins.patch(timm(depth=2), spec))
    with torch.no_grad():
        expected = model(images())
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
        found = compiled(images())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_copy_made_after_a_forward_holds_nothing_of_it() -> None:
    import copy

    model = attn_plugins.patch(timm(), "gated").train()
    model(images()).sum().backward()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(images()), model(images()))
