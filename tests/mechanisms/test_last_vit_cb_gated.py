"""LaSt-ViT against its equations and its published code, CB's fixed points, the gate's start."""

import math

import pytest
import torch

import attn_plugins
from attn_plugins.mechanisms.broadcasting import broadcast_context
from attn_plugins.mechanisms.last_vit import low_pass, stable_features

from .tiny_vits import FAMILIES, WIDTH, dinov3, images, timm, trained


def dft(channels):
    """The matrix of the discrete Fourier transform."""
    index = torch.arange(channels, dtype=torch.float64)
    return torch.exp(-2j * math.pi * index[:, None] * index / channels)


@pytest.mark.parametrize("channels", [16, 17])
@pytest.mark.parametrize("sigma", [None, 1.3])
def test_the_low_pass_filter_is_a_gaussian_over_frequencies(channels, sigma):
    x = torch.randn(3, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frequency = torch.arange(channels)
    frequency = torch.minimum(frequency, channels - frequency).double()
    gain = torch.exp(-(frequency**2) / (2 * (sigma or channels**0.5) ** 2))
    matrix = dft(channels)
    expected = ((x.to(matrix.dtype) @ matrix.T * gain) @ matrix.conj() / channels).real
    torch.testing.assert_close(low_pass(x, sigma).double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(low_pass(torch.ones(channels)), torch.ones(channels))


@pytest.mark.parametrize("k", [1, 3])
def test_stable_features_follow_equation_5_channel_by_channel(k):
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


def published(x):
    """``dense_vit.forward`` of the authors' cls_pretrain/conf.py, as their issue 6 quotes it, and its return value."""
    channels = x.shape[-1]
    position = torch.arange(channels) - (channels - 1) // 2
    kernel = torch.exp(-0.5 * (position / channels**0.5) ** 2)
    spectrum = torch.fft.fftshift(torch.fft.fft(x, dim=-1), dim=-1)
    return torch.fft.ifft(torch.fft.ifftshift(spectrum * kernel, dim=-1), dim=-1).real.mean(dim=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_replaces_cls_and_nothing_else(name):
    family = FAMILIES[name]
    model = attn_plugins.patch(trained(family.build()), "softmax")
    with torch.no_grad():
        _, patches = family.read(model, images())
        attn_plugins.patch(model, "last_vit:k=2,sigma=3.0")
        cls, same = family.read(model, images())
        assert torch.equal(same, patches)
        torch.testing.assert_close(cls, stable_features(patches, 2, 3.0))
        attn_plugins.patch(model, "last_vit:published=true")
        torch.testing.assert_close(family.read(model, images())[0], published(patches), atol=1e-5, rtol=1e-4)


def test_it_reads_patches_and_not_registers():
    model = trained(attn_plugins.patch(timm(), "registers:num=2+last_vit:k=4"))
    tokens = model.forward_features(images())
    torch.testing.assert_close(tokens[:, 0], stable_features(tokens[:, 3:], 4))


def test_more_patches_than_there_are_and_half_precision():
    x = torch.randn(1, 3, 8)
    torch.testing.assert_close(stable_features(x, 7), x.mean(1))
    model = trained(attn_plugins.patch(timm(), "last_vit")).bfloat16()
    assert model(images().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("spec", ["last_vit:k=0", "last_vit:k=1.5", "last_vit:sigma=-1", "last_vit:sigma=wide"])
def test_last_vit_refuses_what_has_no_meaning(spec):
    with pytest.raises(ValueError, match="k is at least 1 and sigma above 0"):
        attn_plugins.patch(timm(), spec)


def test_last_vit_refuses_models_that_norm_cls_apart():
    with pytest.raises(attn_plugins.UnsupportedModelError, match="untie_cls_and_patch_norms=False"):
        attn_plugins.patch(dinov3(untie_cls_and_patch_norms=True), "last_vit")


def test_context_broadcasting_fixed_points():
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    constant = x[:, :1].expand(-1, 5, -1)
    torch.testing.assert_close(broadcast_context(constant), constant)
    torch.testing.assert_close(broadcast_context(x).mean(1), x.mean(1))
    deviation = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(broadcast_context(x) - x.mean(1, keepdim=True), deviation / 2)
    assert torch.equal(broadcast_context(x, torch.zeros(8, dtype=x.dtype)), x)
    doubled = broadcast_context(constant, torch.ones(8, dtype=x.dtype))
    torch.testing.assert_close(doubled, 2 * constant)


def test_each_mlp_gives_each_image_its_own_mean():
    model = trained(attn_plugins.patch(timm(), "context_broadcasting"))
    seen = []
    model.blocks[0].mlp.fc2.register_forward_hook(lambda module, args, out: seen.append(out))
    model.blocks[0].mlp.register_forward_hook(lambda module, args, out: seen.append(out))
    model(images(3))
    torch.testing.assert_close(seen[1], (seen[0] + seen[0].mean(1, keepdim=True)) / 2)


def test_the_gate_opens_and_closes():
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


@pytest.mark.parametrize("spec", ["entmax15+gated+specialization", "entmax15+registers+cb_s+last_vit"])
def test_compiled_whole(spec):
    model = trained(attn_plugins.patch(timm(depth=2), spec))
    with torch.no_grad():
        expected = model(images())
        torch._dynamo.reset()
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(images())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_copy_made_after_a_forward_holds_nothing_of_it():
    import copy

    model = attn_plugins.patch(timm(), "gated").train()
    model(images()).sum().backward()
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(images()), model(images()))
