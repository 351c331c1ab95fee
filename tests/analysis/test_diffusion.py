"""Measures of diffusion: constructed values, scikit-learn and brute force, and the pass over a model."""

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import attn_plugins
from attn_plugins.analysis.diffusion import (
    BOXED_MEASURES,
    MEASURES,
    attention_inside,
    diffusion,
    effective_rank,
    mutual_nearest,
)
from attn_plugins.analysis.images import Batch
from attn_plugins.analysis.recording import recorded

SIDE, GRID = 64, 4
BOXES = [[(0.0, 0.0, 32.0, 32.0), (0.0, 0.0, 64.0, 32.0)], [], [(16.0, 16.0, 48.0, 64.0)]]


def test_effective_ranks_that_are_known() -> None:
    g = torch.Generator().manual_seed(0)
    line = torch.randn(1, 9, 1, generator=g) * torch.randn(1, 1, 6, generator=g)
    assert effective_rank(line).item() == pytest.approx(1)
    assert effective_rank(torch.ones(1, 9, 6)).item() == 1
    # Centred, n orthonormal vectors spread alike over n - 1 dimensions.
    assert effective_rank(torch.eye(7)[None]).item() == pytest.approx(6)
    assert effective_rank(torch.eye(7)[None].repeat(1, 3, 1)).item() == pytest.approx(6)
    x = torch.randn(2, 9, 6, generator=g)
    for one, found in zip(x, effective_rank(x), strict=True):
        values = np.linalg.svd(one.numpy() - one.numpy().mean(0), compute_uv=False)
        shares = values / values.sum()
        assert found.item() == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-5)


def test_mutual_nearest_patches_that_are_known() -> None:
    angle = torch.tensor([0.0, 0.01, 1.0, 1.01, 2.0, 2.01])
    pairs = torch.stack([angle.cos(), angle.sin()], -1)[None]
    assert mutual_nearest(pairs).item() == 1
    # One patch is the nearest of all others, and has one nearest itself: two of six agree.
    hub = torch.cat([torch.ones(1, 6), 0.9 * torch.ones(5, 6) + torch.eye(6)[:5] * torch.arange(3.0, 8)[:, None]])[None]
    assert mutual_nearest(hub).item() == pytest.approx(2 / 6)
    x = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(1))
    for one, found in zip(x, mutual_nearest(x), strict=True):
        nearest = NearestNeighbors(n_neighbors=2, metric="cosine").fit(one).kneighbors(one, return_distance=False)[:, 1]
        assert found.item() == pytest.approx(np.mean(nearest[nearest] == np.arange(40)))


def test_attention_inside_of_maps_that_are_known() -> None:
    regions = torch.zeros(2, 16, dtype=torch.bool)
    regions[0, :2] = True
    regions[1, :8] = True
    uniform, own = torch.full((3, 16, 16), 1 / 16), torch.eye(16).expand(3, -1, -1)
    # Two patches have an object of two, six one of eight, of sixteen.
    area = (2 * 2 + 6 * 8) / 8 / 16
    for weights, expected in (
        (uniform, area),
        (own, 1.0),
        (0.3 * own, 1.0),
        (0.5 * own + 0.5 * uniform, (1 + area) / 2),
    ):
        share, covered = attention_inside(weights, regions)
        assert share.item() == pytest.approx(expected) and covered.item() == pytest.approx(area)
    nothing = attention_inside(uniform, regions[:0])
    assert all(math.isnan(value) for value in nothing)
    alone = own.clone()
    alone[:, 0] = 0  # looks at [CLS] alone
    assert attention_inside(alone, regions)[0].item() == 1


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, embed_dim=32, num_heads=2, depth=3, num_classes=0)
    model = attn_plugins.patch(model, "entmax15+registers:num=2").eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def run(model: Any) -> tuple[Tensor, dict[str, list[Tensor]], dict[int, Tensor]]:
    """Images, and what the blocks and their attention gave for them."""
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    outputs: list[Tensor] = []
    maps: dict[int, Tensor] = {}
    handles = [block.register_forward_hook(lambda module, args, out: outputs.append(out)) for block in model.blocks]
    with torch.no_grad(), recorded(model, lambda layer, answer: maps.__setitem__(layer, answer.weights)):
        model(pixels)
        for handle in handles:
            handle.remove()
        norms = [model.blocks[1].norm1, model.blocks[2].norm1, model.norm]
        own = [norm(out) for norm, out in zip(norms, outputs, strict=True)]
        final = [model.norm(out) for out in outputs]
    return pixels, {"none": outputs, "own": own, "final": final}, maps


def test_measures_of_a_model_are_those_of_its_tokens(
    model: Any, run: tuple[Tensor, dict[str, list[Tensor]], dict[int, Tensor]]
) -> None:
    pixels, tokens, _ = run
    found = diffusion(model, [Batch(pixels[:2], [[], []]), Batch(pixels[2:], [[]])])
    assert found.keys() == MEASURES.keys()
    for layer in range(3):
        for image in range(3):
            for norm in ("none", "own"):
                whole = tokens[norm][layer][image].numpy()
                cls, patches = whole[:1], whole[3:]
                values = cosine_similarity(patches)
                pairs = values[~np.eye(16, dtype=bool)].mean()
                assert found[f"patch_patch_{norm}"].values[image, layer] == pytest.approx(pairs, abs=1e-5)
                expected = cosine_similarity(patches, cls).mean()
                assert found[f"cls_patch_{norm}"].values[image, layer] == pytest.approx(expected, abs=1e-5)
            final, raw = tokens["final"][layer][image : image + 1, 3:], tokens["none"][layer][image : image + 1, 3:]
            assert found["mutual_nearest"].values[image, layer] == mutual_nearest(final).item()
            assert found["effective_rank"].values[image, layer] == pytest.approx(effective_rank(raw).item(), rel=1e-6)


def test_measures_with_boxes_are_those_of_its_tokens_and_maps(
    model: Any, run: tuple[Tensor, dict[str, list[Tensor]], dict[int, Tensor]]
) -> None:
    pixels, tokens, maps = run
    found = diffusion(model, [Batch(pixels, BOXES)], boxes=True)
    assert found.keys() == BOXED_MEASURES.keys()
    centres = [(16 * (n % GRID) + 8, 16 * (n // GRID) + 8) for n in range(16)]
    for image, boxes in enumerate(BOXES):
        boxes = sorted(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
        own = [
            next((k for k, (a, b, c, d) in enumerate(boxes) if a <= x <= c and b <= y <= d), None) for x, y in centres
        ]
        for layer in range(3):
            got = {name: measured.values[image, layer] for name, measured in found.items()}
            if not boxes:
                assert math.isnan(got["cls_foreground"]) and math.isnan(got["attention_inside"])
                continue
            whole = tokens["final"][layer][image].numpy()
            scores = cosine_similarity(whole[3:], whole[:1])[:, 0]
            inside = np.array([k is not None for k in own])
            assert got["cls_foreground"] == pytest.approx(scores[inside].mean(), abs=1e-5)
            assert got["cls_background"] == pytest.approx(scores[~inside].mean(), abs=1e-5)
            difference = scores[~inside].mean() - scores[inside].mean()
            assert got["background_excess"] == pytest.approx(difference, abs=1e-5)
            shares, areas = [], []
            for n, k in enumerate(own):
                if k is not None:
                    a, b, c, d = boxes[k]
                    same = np.array([a <= x <= c and b <= y <= d for x, y in centres])
                    rows = maps[layer][image, :, 3 + n, 3:].numpy()
                    shares += [row[same].sum() / row.sum() for row in rows if row.sum() > 0]
                    areas.append(same.mean())
            assert got["attention_inside"] == pytest.approx(np.mean(shares), abs=1e-5)
            assert got["inside_excess"] == pytest.approx(np.mean(shares) - np.mean(areas), abs=1e-5)


def test_a_model_whose_tokens_are_all_alike_is_fully_diffused(model: Any) -> None:
    twin: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, embed_dim=32, num_heads=2, depth=1, num_classes=0
    )
    for parameter in (twin.pos_embed, twin.patch_embed.proj.weight):
        parameter.data.zero_()
    twin.cls_token.data.copy_(twin.patch_embed.proj.bias)
    found = diffusion(twin.eval(), [Batch(torch.randn(2, 3, SIDE, SIDE), [[(0.0, 0.0, 32.0, 32.0)]] * 2)])
    for name in ("cls_patch_none", "cls_patch_own", "patch_patch_none", "patch_patch_own", "effective_rank"):
        np.testing.assert_allclose(found[name].values, 1, atol=1e-5, err_msg=name)
    boxed = diffusion(twin, [Batch(torch.randn(1, 3, SIDE, SIDE), [[(0.0, 0.0, 32.0, 32.0)]])], boxes=True)
    assert boxed["background_excess"].values == pytest.approx(0, abs=1e-6)
    assert boxed["inside_excess"].values == pytest.approx(0, abs=1e-6)  # equal scores: attention is uniform


def test_no_images_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="no images"):
        diffusion(model, [])
