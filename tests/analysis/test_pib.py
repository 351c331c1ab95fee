"""Point-in-box with known answers, under each norm, and by LaSt-ViT's rule as its authors' code has it."""

import importlib.util
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import attn_plugins
from attn_plugins.analysis.boxes import Objects, Rule
from attn_plugins.analysis.figures import pib_exhibit
from attn_plugins.analysis.findings import PRESETS, Findings, Settings
from attn_plugins.analysis.images import Batch, View, find_images
from attn_plugins.analysis.measure import wilson
from attn_plugins.analysis.pib import PiB, centred, most_like, overlapped, pib
from attn_plugins.analysis.subjects import Subject


class Told(nn.Module):
    """A ViT of two blocks over 8 x 8 patches of 4 pixels, whose patch features are the images' own first channels.

    [CLS] of the first block points at the brightest patch; [CLS] of the second at the darkest.
    """

    class Block(nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, tokens: Tensor) -> Tensor:
            patches = tokens[:, 1:]
            return torch.cat([self.sign * torch.tensor([1.0, 0.0]).expand(len(patches), 1, 2), patches], 1)

    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.embed_dim = 4, 2
        self.blocks = nn.ModuleList([self.Block(1), self.Block(-1)])
        self.norm = nn.LayerNorm(2)

    def forward_features(self, images: Tensor) -> Tensor:
        angle = images[:, 0, 2::4, 2::4].flatten(1)
        tokens = torch.cat([torch.zeros(len(images), 1, 2), torch.stack([angle.cos(), angle.sin()], -1)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def pointing(row: int, column: int, seed: int = 0) -> Tensor:
    """An image whose patch at (row, column) has angle 0, and all others between 1 and 2 radians."""
    image = 1 + torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))
    image[:, row, column] = 0
    return image.repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_answers_that_are_known() -> None:
    pixels = torch.stack([pointing(2, 5), pointing(7, 0)])
    right = [[(20.0, 8.0, 24.0, 12.0)], [(0.0, 28.0, 4.0, 32.0)]]
    wrong = [[(0.0, 0.0, 4.0, 4.0)], [(8.0, 0.0, 32.0, 27.0)]]
    found = pib(Told(), [Batch(pixels, right)], norm="none")
    assert found.images == 2 and found.share.mean.tolist() == [1.0, 0.0]
    assert found.points[:, 0].tolist() == [2 * 8 + 5, 7 * 8]
    assert found.border.mean[0] == 0.5 and found.border_chance == 28 / 64
    assert found.chance.tolist() == [1 / 64, 1 / 64]
    assert found.above_chance.mean[0] == pytest.approx(63 / 64)
    assert found.point(0, 0, 32) == (22.0, 10.0)
    assert pib(Told(), [Batch(pixels, wrong)], norm="none").share.mean[0] == 0.0
    everywhere = [[(0.0, 0.0, 32.0, 32.0)]] * 2
    assert pib(Told(), [Batch(pixels, everywhere)], norm="none").share.mean.tolist() == [1.0, 1.0]


def test_the_centre_decides_and_any_box_will_do() -> None:
    for boxes, inside in (
        ([(12.0, 4.0, 16.0, 8.0)], True),
        ([(12.1, 4.0, 16.0, 8.0)], False),
        ([(0.0, 0.0, 1.0, 1.0), (8.0, 0.0, 16.0, 8.0)], True),
    ):
        assert centred(boxes, (16, 16), (2, 2))[0, 1] == inside, boxes


def test_random_features_hit_as_often_as_chance_says() -> None:
    g = torch.Generator().manual_seed(0)
    count = 4000
    points = most_like(torch.randn(count, 100, 16, generator=g), torch.randn(count, 16, generator=g))
    counted = centred([(0.0, 0.0, 50.0, 30.0)], (100, 100), (10, 10)).ravel()
    low, high = wilson(int(counted[points].sum()), count, 0.999)
    assert counted.mean() == 0.15 and low <= 0.15 <= high


def test_images_without_a_box_are_left_out_and_none_at_all_is_refused() -> None:
    pixels = torch.stack([pointing(2, 5), pointing(1, 1)])
    found = pib(Told(), [Batch(pixels, [[], [(0.0, 0.0, 32.0, 32.0)]]), Batch(pixels, [[(0.0, 0.0, 1.0, 1.0)], []])])
    assert (found.images, found.skipped, found.kept.tolist()) == (2, 2, [1, 2])
    with pytest.raises(ValueError, match="none of 2 images has a box"):
        pib(Told(), [Batch(pixels, [[], []])])
    with pytest.raises(ValueError, match=r"norm='layer'.*none, final, own"):
        pib(Told(), [], norm="layer")


@pytest.mark.parametrize("spec", ["softmax", "registers:num=2+specialization"])
def test_every_norm_is_the_one_it_says(spec: str) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=32, num_heads=2, depth=3, num_classes=0
    )
    attn_plugins.patch(model, spec).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    pixels = torch.randn(5, 3, 64, 64)
    outputs = []
    handles = [block.register_forward_hook(lambda module, args, out: outputs.append(out)) for block in model.blocks]
    with torch.no_grad():
        model(pixels)
        for handle in handles:
            handle.remove()
        following = [model.blocks[1].norm1, model.blocks[2].norm1, model.norm]
        expected = {
            "none": outputs,
            "final": [model.norm(out) for out in outputs],
            "own": [norm(out) for norm, out in zip(following, outputs, strict=True)],
        }
    chosen = set()
    for norm, tokens in expected.items():
        points = [F.normalize(t[:, -16:], dim=-1) @ F.normalize(t[:, 0], dim=-1)[:, :, None] for t in tokens]
        found = pib(model, [Batch(pixels, [[(0.0, 0.0, 64.0, 64.0)]] * 5)], norm=norm)
        assert found.points.T.tolist() == [p[..., 0].argmax(1).tolist() for p in points]
        chosen.add(tuple(found.points.ravel()))
    assert len(chosen) == 3, "the norms choose alike, so this test could not tell them apart"


def test_overlap_by_hand() -> None:
    """An image of 512 x 256 becomes 512 x 256, its centre 224 x 224 begins 144 from the left and 16 from the top."""
    view = View(224, 256)
    # Corners of the annotation, from 1: columns 160 and 175 are pixels 16 and 31 of the crop, rows 16 and 48 0 and 32.
    box = (160.0 - 1, 16.0 - 1, 175.0, 48.0)
    rows, columns = np.nonzero(overlapped(box, (256, 512), view, (14, 14)))
    assert sorted(set(rows.tolist())) == [0, 1, 2] and set(columns.tolist()) == {1}
    gone = overlapped((0.0, 0.0, 20.0, 10.0), (256, 512), view, (14, 14))
    assert gone.sum() == 1 and gone[0, 0], "what the crop cuts away above and to the left leaves the first patch"
    assert not overlapped((480.0, 0.0, 512.0, 256.0), (256, 512), view, (14, 14)).any()


LAST_VIT = os.environ.get("LAST_VIT_ROOT")


@pytest.mark.skipif(LAST_VIT is None, reason="LAST_VIT_ROOT names no checkout of ChengShiest/LAST-ViT")
def test_overlap_is_that_of_the_authors_code(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(str(LAST_VIT)) / "visualization"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("evaluate_patch_hit", folder / "evaluate_patch_hit.py")
    assert spec is not None and spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    for name in ("patch_score", "imagenet_dataloader"):
        sys.modules.pop(name, None)
    draw = random.Random(0)
    for _ in range(2000):
        width, height = draw.randint(60, 900), draw.randint(60, 900)
        xs, ys = sorted(draw.sample(range(1, width + 1), 2)), sorted(draw.sample(range(1, height + 1), 2))
        expected = theirs.bbox_to_patch_set((xs[0], ys[0], xs[1], ys[1]), width, height)
        box = (xs[0] - 1.0, ys[0] - 1.0, float(xs[1]), float(ys[1]))
        found = overlapped(box, (height, width), View(224, 256), (14, 14))
        assert set(np.flatnonzero(found.ravel()).tolist()) == expected, (box, width, height)


def test_the_preset_counts_what_lastvit_counts(tmp_path: Path) -> None:
    settings = Settings(**PRESETS["last-vit"])
    quarter, less = (0.0, 0.0, 51.0, 51.0), (0.0, 0.0, 50.0, 51.0)  # 50 x 50 and 49 x 50 as xmax - xmin and ymax - ymin
    size = (100, 100)
    for boxes, counts in (([quarter], False), ([less], True), ([less, less], False), ([], False)):
        objects = Objects(tuple(boxes), (True,) * len(boxes), size)
        assert (settings.rule.allows(objects, size) is not None) == counts, boxes
    assert (settings.view, settings.hit, settings.norm) == (View(224, 256, True), "overlap", "final")
    # The crop is torchvision's: Resize(256) and CenterCrop(224) of a picture.
    transforms = pytest.importorskip("torchvision.transforms")
    for width, height in ((300, 211), (217, 400), (333, 333)):
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        (batch,) = find_images(tmp_path).batches(settings.view)
        cut = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(Image.fromarray(pixels))
        np.testing.assert_allclose(batch.rgb()[0], np.asarray(cut) / 255, atol=1e-6)


def test_difficult_objects_count_where_they_are_asked_for() -> None:
    objects = Objects(((0.0, 0.0, 5.0, 5.0), (1.0, 1.0, 3.0, 3.0)), (False, True), (10, 10))
    assert Rule().allows(objects, (10, 10)) == objects.boxes[:1]
    assert Rule(difficult=True).allows(objects, (10, 10)) == objects.boxes
    assert Rule(single=True).allows(objects, (10, 10)) is None
    assert Rule().allows(Objects(((0.0, 0.0, 5.0, 5.0),), (True,)), (10, 10)) is None
    with pytest.raises(ValueError, match=r"below=2"):
        Rule(below=2)


def test_the_heat_map_shows_chance_and_intervals_that_proportions_can_have() -> None:
    hits = np.zeros((6, 2), bool)
    hits[:, 0], hits[0, 1] = True, True
    result = PiB("none", "centre", np.zeros((6, 2), np.int64), hits, np.full(6, 0.25), (4, 4), np.arange(6))
    drawn = pib_exhibit([Findings(Subject.of(nn.Identity(), "model"), pib=result)], Settings(norm="none"))
    share, border = (one.drawing.axes[0] for one in drawn.panels)
    told = [text.get_text() for text in share.texts]
    # All six hit: Wilson's interval by hand, z = 1.96. One in six: 9999 in 10000 resamplings of six have four or fewer.
    assert told[0] == "25" and told[1] == "100 (61–100)" and told[2].startswith("17 (0–50")
    assert [text.get_text() for text in border.texts] == ["75", "100", "100"]
    assert "block outputs without any norm" in drawn.caption and "6 images" in drawn.caption
    for row in drawn.rows:
        assert row["chance"] == 0.25 and row["border_chance"] == 0.75 and row["norm"] == "none"
