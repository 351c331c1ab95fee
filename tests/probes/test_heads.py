"""Heads equal DINOv2's with equal weights, and batch norm over processes equals batch norm over one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from attn_plugins.probes.depth.model import DepthBinsHead
from attn_plugins.probes.segmentation import BNLinearHead, GlobalBatchNorm

from .conftest import checkout


def maps(count: int, channels: int, size: tuple[int, int] = (5, 7)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, *size, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(("low", "high"), [(0.001, 10.0), (0.001, 80.0)])
def test_depth_head_is_dinov2s(low: float, high: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(checkout("DINOV2_ROOT")))
    from dinov2.hub.depth import BNHead, DepthEncoderDecoder

    ours = DepthBinsHead([16] * 4, low, high, align_corners=False, loss_decode=[])
    theirs = BNHead(
        classify=True, n_bins=256, bins_strategy="UD", norm_strategy="linear", upsample=4, in_channels=[8] * 4,
        in_index=[0, 1, 2, 3], input_transform="resize_concat", channels=64, align_corners=False, min_depth=low,
        max_depth=high,
    )  # fmt: skip
    nn.init.normal_(theirs.conv_depth.weight, std=0.2)
    ours.conv_seg.load_state_dict(theirs.conv_depth.state_dict())
    patches, cls = maps(4, 8), [m[:, :, 0, 0] for m in maps(4, 8)]
    concatenated = [torch.cat([p, c[:, :, None, None].expand_as(p)], 1) for p, c in zip(patches, cls, strict=True)]
    depth = ours(concatenated)
    torch.testing.assert_close(depth, theirs(list(zip(patches, cls, strict=True))), atol=1e-5 * high, rtol=1e-5)

    whole = DepthEncoderDecoder(backbone=nn.Identity(), decode_head=theirs)
    monkeypatch.setattr(whole, "extract_feat", lambda img: list(zip(patches, cls, strict=True)))
    theirs_at_size = whole.encode_decode(torch.zeros(2, 3, 70, 98), None)
    ours_at_size = ours.predict_by_feat(depth, [{"img_shape": (70, 98)}])
    torch.testing.assert_close(ours_at_size, theirs_at_size, atol=1e-5 * high, rtol=1e-5)


def test_segmentation_head_is_batch_norm_and_one_linear_map() -> None:
    head = BNLinearHead([6, 6], num_classes=5, align_corners=False)
    nn.init.normal_(head.bn.weight)
    nn.init.normal_(head.bn.bias)
    inputs = maps(2, 6)
    norm = nn.BatchNorm2d(12)
    norm.load_state_dict(head.bn.state_dict())
    pixels = norm(torch.cat(inputs, 1)).permute(0, 2, 3, 1)
    expected = nn.functional.linear(pixels, head.conv_seg.weight[:, :, 0, 0], head.conv_seg.bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(head(inputs), expected)
    torch.testing.assert_close(head.bn.running_var, norm.running_var)
    assert head.dropout is None


def _half_a_batch(rank: int, folder: str, x: Tensor) -> None:
    place, patience = f"file://{folder}/rendezvous", timedelta(minutes=2)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=patience)
    saved = []
    for tuned in (False, True):
        norm, own = GlobalBatchNorm(x.shape[1]), x[rank::2].clone().requires_grad_(tuned)
        output = norm(own)
        (output.square() * torch.arange(x.shape[1])[:, None, None]).mean().backward()
        gradients = [p.grad for p in (norm.weight, norm.bias) if p.grad is not None]
        for gradient in gradients:
            dist.all_reduce(gradient)
        saved.append([output.detach(), dict(norm.state_dict()), [g / 2 for g in gradients], own.grad])
    torch.save(saved, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _other_half(_: int, folder: str, x: Tensor) -> None:
    _half_a_batch(1, folder, x)


@pytest.mark.slow
def test_batch_norm_over_two_processes_is_that_of_one(tmp_path: Path) -> None:
    """Of frozen features, and of those of a backbone that is trained."""
    x = torch.randn(4, 3, 5, 6) * 3 + 100
    other = mp.spawn(_other_half, args=(str(tmp_path), x), nprocs=1, join=False)
    _half_a_batch(0, str(tmp_path), x)
    other.join()
    norm = nn.BatchNorm2d(3)
    expected = norm(x.requires_grad_())
    (expected.square() * torch.arange(3)[:, None, None]).mean().backward()
    wanted = [p.grad for p in (norm.weight, norm.bias) if p.grad is not None]
    assert len(wanted) == 2 and x.grad is not None
    for rank in range(2):
        frozen, tuned = torch.load(tmp_path / f"{rank}.pt")
        for output, state, gradients, _ in (frozen, tuned):
            torch.testing.assert_close(output, expected[rank::2], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(state, dict(norm.state_dict()), atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(gradients, wanted, atol=1e-4, rtol=1e-4)
        # Processes' gradients of the backbone are averaged, as those of their own losses.
        torch.testing.assert_close(tuned[3] / 2, x.grad[rank::2], atol=1e-5, rtol=1e-4)


def test_flips_are_averaged(backbone_file: Path) -> None:
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from attn_plugins.probes.run.paths import config_file

    config = Config.fromfile(config_file("nyuv2"))
    init_default_scope(config.default_scope)
    config.model.backbone.checkpoint = str(backbone_file)
    model = MODELS.build(config.model).eval()
    nn.init.normal_(model.decode_head.conv_seg.weight, std=0.5)
    x, metas = torch.randn(2, 3, 50, 61), [{"img_shape": (50, 61)}] * 2
    with torch.no_grad():
        averaged = model.inference(x, metas)
        one, other = model.encode_decode(x, metas), model.encode_decode(x.flip(3), metas).flip(3)
    torch.testing.assert_close(averaged, (one + other) / 2, atol=1e-5, rtol=1e-5)
    assert (one - other).abs().max() > 0.01


def test_targets_without_depth_are_counted_and_cost_nothing() -> None:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    losses = [{"type": "SigLoss"}, {"type": "LogGradientLoss"}]
    head = DepthBinsHead([6], 0.001, 10.0, align_corners=False, loss_decode=losses)
    samples = [SegDataSample() for _ in range(2)]
    for sample in samples:
        sample.set_data({"gt_depth_map": PixelData(data=torch.zeros(1, 20, 28))})
    found = head.loss_by_feat(head([torch.randn(2, 6, 5, 7)]), samples)
    assert {name: float(value) for name, value in found.items()} == {
        "loss_sig": 0.0, "loss_grad": 0.0, "images_without_depth": 2.0
    }  # fmt: skip
