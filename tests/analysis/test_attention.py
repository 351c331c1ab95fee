"""Attention statistics: closed forms, brute force over timm's own maps, and one layer's maps at a time."""

import copy
import math
import weakref
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import attn_plugins
from attn_plugins.analysis import attention as module
from attn_plugins.analysis.attention import cls_attention, entropy, statistics
from attn_plugins.analysis.recording import Answer, recorded
from attn_plugins.functional.normalizer import bind, build
from attn_plugins.spec import parse


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=32, num_heads=2, depth=3, num_classes=0, weight_init="jax"
    )
    for block in model.blocks:
        block.attn.qkv.weight.data *= 5  # peaked attention, so that sparse normalizers have something to cut
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def plain_maps(model: Any, images: Tensor) -> Tensor:
    """Softmax maps [L, B, H, N, N] of timm's path without fused attention, through its attn_drop."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        block.attn.fused_attn = False
    maps = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda module, args, out: maps.append(args[0]))
    with torch.no_grad():
        model(images)
    return torch.stack(maps)


def test_entropy_closed_forms() -> None:
    n = 7
    uniform, one_hot = torch.full((1, n), 1 / n), torch.eye(n)[:1]
    halves = torch.tensor([[0.5, 0.5] + [0.0] * (n - 2)])
    values = entropy(torch.cat([uniform, one_hot, halves]))
    torch.testing.assert_close(values, torch.tensor([math.log(n), 0, math.log(2)]))


def test_statistics_of_an_unpatched_model_are_those_of_its_own_maps(model: Any, images: Tensor) -> None:
    maps = plain_maps(model, images)
    found = statistics(model, images)
    rows = entropy(maps)
    torch.testing.assert_close(found.entropy, rows.mean(dim=(1, 3)))
    torch.testing.assert_close(found.bound, torch.full((3,), math.log(17)))
    quantile = rows.transpose(1, 2).flatten(2).quantile(0.15, dim=-1, interpolation="lower")
    torch.testing.assert_close(found.entropy_p15, quantile, atol=2 * math.log(17) / 4096, rtol=0)
    torch.testing.assert_close(found.cls_mass, maps[:, :, :, 0, 1:].sum(-1).mean(1))
    assert (found.zero_share == 0).all() and (found.support == 17).all()
    assert all(line.spec is None for line in attn_plugins.describe(model)), "the model is as it was"


@pytest.mark.parametrize("spec", ["entmax15", "sparsemax", "entmax_alpha"])
def test_sparse_normalizers_and_batches(model: Any, images: Tensor, spec: str) -> None:
    attn_plugins.patch(model, spec)
    before = model(images)
    whole, streamed = statistics(model, images), statistics(model, iter(images.split(1)))
    for name in ("entropy", "entropy_p15", "zero_share", "underflow", "support", "cls_mass", "rows"):
        torch.testing.assert_close(getattr(streamed, name), getattr(whole, name), msg=name)
    torch.testing.assert_close(whole.zero_share * 17 + whole.support, torch.full((3, 2), 17.0))
    assert whole.zero_share.max() > 0.05
    torch.testing.assert_close(model(images), before)
    assert {line.spec for line in attn_plugins.describe(model)} == {spec}


def test_zero_share_and_support_of_a_map_that_is_known(model: Any, images: Tensor) -> None:
    attn_plugins.patch(model, "sparsemax")
    for block in model.blocks:
        block.attn.qkv.weight.data.zero_()  # equal scores: sparsemax is uniform
    found = statistics(model, images)
    torch.testing.assert_close(found.entropy, torch.full((3, 2), math.log(17)))
    torch.testing.assert_close(found.cls_mass, torch.full((3, 2), 16 / 17))
    assert (found.support == 17).all()


@pytest.mark.parametrize(
    ("spec", "scores", "support"),
    [
        # exp(-200) is below 1e-45, and softmax gives it to its key all the same.
        ("softmax", [0.0, -1.0, -200.0], 3),
        ("entmax15", [0.0, -1.0, -200.0], 2),
        ("sparsemax", [0.0, -0.5, -200.0], 2),
        # alpha = 1.05 is d^20: the third key is 0.0025 above the threshold, and 0.0025^20 is 1e-52.
        ("entmax:alpha=1.05", [0.0, -18.0, -19.95, -200.0], 3),
    ],
)
def test_underflow_is_no_support(spec: str, scores: Tensor, support: int) -> None:
    normalizer = bind(spec)
    rows = torch.tensor(scores).expand(1, 1, 2, -1)
    answer = Answer(normalizer(rows), rows, normalizer)
    assert answer.support().sum(-1).unique().tolist() == [support]
    stats = module._Layer(1, len(scores), torch.device("cpu"))
    stats.add(answer, len(scores))
    assert float(stats.support / stats.rows) == support
    held = int((answer.weights[0, 0, 0] > 0).sum())
    assert float(stats.underflow / stats.rows) == pytest.approx((support - held) / len(scores))
    assert float(stats.zero_share / stats.rows) == pytest.approx(1 - support / len(scores))
    assert held < support or spec in ("entmax15", "sparsemax")


@pytest.mark.parametrize("scale", ["0.2", "per_head", "learnable", "asentmax"])
@pytest.mark.parametrize("normalizer", ["entmax15", "entmax_alpha"])
def test_a_factor_on_the_scores_is_seen_and_left_as_it_was(
    model: Any, images: Tensor, normalizer: str, scale: str
) -> None:
    attn_plugins.patch(model, f"{normalizer}:scale={scale}")
    for block in model.blocks:
        block.attn.fused_attn = True  # asentmax needs the query
    for parameter in model.parameters():
        parameter.data += 0.1
    names, before = list(model.state_dict()), model(images).detach()
    seen = []
    with torch.no_grad(), recorded(model, lambda layer, answer: seen.append((layer, answer))):
        torch.testing.assert_close(model(images), before, atol=1e-5, rtol=1e-4)
    assert [layer for layer, _ in seen] == [0, 1, 2] and list(model.state_dict()) == names
    for _, answer in seen:
        torch.testing.assert_close(answer.normalizer(answer.scores, dim=-1).detach(), answer.weights)
        torch.testing.assert_close(answer.weights.sum(-1), torch.ones_like(answer.weights[..., 0]))
    torch.testing.assert_close(model(images), before)


def test_support_of_a_learnable_alpha_is_computed_anew() -> None:
    normalizer = build(parse("entmax_alpha:init=1.05").normalizer, 2)
    assert isinstance(normalizer, nn.Module)
    rows = torch.tensor([0.0, -18.0, -19.95, -200.0]).expand(1, 2, 1, -1)
    weights = normalizer(rows).detach()
    assert Answer(weights, rows, normalizer).support().sum(-1).flatten().tolist() == [3, 3]
    assert (weights > 0).sum(-1).max() < 3 and normalizer.get_parameter("logit").dtype == torch.float32


def test_one_layers_maps_at_a_time(model: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    add = module._Layer.add

    def watched(self: module._Layer, answer: Answer, patches: int) -> None:
        assert all(reference() is None for reference in alive), "an earlier layer's maps are still held"
        add(self, answer, patches)
        alive.append(weakref.ref(answer.weights))

    monkeypatch.setattr(module._Layer, "add", watched)
    statistics(model, [images, images])
    assert len(alive) == 6


def test_cls_attention_is_the_first_row(model: Any, images: Tensor) -> None:
    maps = plain_maps(model, images)
    torch.testing.assert_close(cls_attention(model, images, 1), maps[1, :, :, 0, 1:].unflatten(-1, (4, 4)))
    with pytest.raises(ValueError, match="layers 0 to 2"):
        cls_attention(model, images, 3)


def test_no_images_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="no images"):
        statistics(model, [])
