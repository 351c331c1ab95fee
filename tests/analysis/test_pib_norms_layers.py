"""Point-in-box with known answers, Wilson's interval, token norms against torch, layers from probe files."""

import json
import math

import pytest
import torch
from torch import nn

from attn_plugins.analysis import norms as norms_module
from attn_plugins.analysis.figures import pib_exhibit
from attn_plugins.analysis.findings import Findings
from attn_plugins.analysis.images import Batch
from attn_plugins.analysis.layers import collect_layers
from attn_plugins.analysis.norms import token_norms
from attn_plugins.analysis.pib import PiB, hits, pib, wilson
from attn_plugins.analysis.subjects import Subject


class Told(nn.Module):
    """A ViT of two blocks over 8 x 8 patches of 4 pixels, whose patch features are the images' own first channels.

    [CLS] of the first block points at the brightest patch; [CLS] of the second at the darkest.
    """

    class Block(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def forward(self, tokens):
            patches = tokens[:, 1:]
            return torch.cat([self.sign * torch.tensor([1.0, 0.0]).expand(len(patches), 1, 2), patches], 1)

    def __init__(self):
        super().__init__()
        self.patch_size, self.embed_dim = 4, 2
        self.blocks = nn.ModuleList([self.Block(1), self.Block(-1)])
        self.norm = nn.LayerNorm(2)

    def forward_features(self, images):
        angle = images[:, 0, 2::4, 2::4].flatten(1)
        tokens = torch.cat([torch.zeros(len(images), 1, 2), torch.stack([angle.cos(), angle.sin()], -1)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def pointing(row, column, seed=0):
    """An image whose patch at (row, column) has angle 0, and all others between 1 and 2 radians."""
    image = 1 + torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))
    image[:, row, column] = 0
    return image.repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_answers_that_are_known():
    pixels = torch.stack([pointing(2, 5), pointing(7, 0)])
    right = [[(20.0, 8.0, 24.0, 12.0)], [(0.0, 28.0, 4.0, 32.0)]]
    wrong = [[(0.0, 0.0, 4.0, 4.0)], [(8.0, 0.0, 32.0, 27.0)]]
    for boxes, expected in ((right, (2, 0)), (wrong, (0, None))):
        found = pib(Told(), [Batch(pixels, boxes)], norm=False)
        assert found.images == 2 and found.hits[0] == expected[0]
        if expected[1] is not None:
            assert found.hits[1] == expected[1]
    everywhere = [[(0.0, 0.0, 32.0, 32.0)]] * 2
    assert pib(Told(), [Batch(pixels, everywhere)], norm=False).share == [1.0, 1.0]


def test_the_centre_decides_and_any_box_will_do():
    features, cls = torch.zeros(1, 2, 2, 2), torch.tensor([[1.0, 0.0]])
    features[:, 1] = 1
    features[0, :, 0, 1] = torch.tensor([1.0, 0.0])
    for boxes, inside in (
        ([(12.0, 4.0, 16.0, 8.0)], True),
        ([(12.1, 4.0, 16.0, 8.0)], False),
        ([(0.0, 0.0, 1.0, 1.0), (8.0, 0.0, 16.0, 8.0)], True),
    ):
        assert hits(features, cls, [boxes], (16, 16)) == [inside], boxes


def test_random_features_hit_as_often_as_the_box_is_large():
    g = torch.Generator().manual_seed(0)
    count = 4000
    patches, cls = torch.randn(count, 16, 10, 10, generator=g), torch.randn(count, 16, generator=g)
    boxes = [[(0.0, 0.0, 50.0, 30.0)]] * count
    share = sum(hits(patches, cls, boxes, (100, 100))) / count
    low, high = wilson(round(share * count), count, 0.999)
    assert low <= 0.15 <= high


def test_images_without_a_box_are_left_out_and_none_at_all_is_refused():
    pixels = torch.stack([pointing(2, 5), pointing(1, 1)])
    found = pib(Told(), [Batch(pixels, [[], [(0.0, 0.0, 32.0, 32.0)]])])
    assert (found.images, found.skipped) == (1, 1)
    with pytest.raises(ValueError, match="none of 2 images has a box"):
        pib(Told(), [Batch(pixels, [[], []])])


@pytest.mark.parametrize("successes, trials", [(0, 10), (10, 10), (3, 10), (150, 1000)])
def test_wilson_is_where_the_score_test_turns(successes, trials):
    """The bounds p solve (share - p)^2 = z^2 p (1 - p) / n, which is how the interval is defined."""
    z, share = 1.959963984540054, successes / trials
    for bound in wilson(successes, trials):
        if 0 < bound < 1:
            assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / trials)
    assert wilson(successes, trials)[0] <= share <= wilson(successes, trials)[1]
    with pytest.raises(ValueError, match="no proportion"):
        wilson(2, 1)


def test_token_norms_are_those_of_the_block_outputs(monkeypatch):
    torch.manual_seed(0)
    values = torch.rand(40, 64) * 9 + 1
    values[:, :3] *= 40
    outputs = [values, values * 2]
    calls = iter([torch.arange(0, 20), torch.arange(20, 40)])

    class Given:
        depth, patch_size = 2, 4

        def __init__(self, model):
            return None

        def __call__(self, images, layers, norm):
            assert not norm
            rows = next(calls)
            pairs = []
            for output in outputs:
                patches = torch.zeros(len(rows), 5, 8, 8)
                patches[:, 3] = output[rows].view(-1, 8, 8)
                pairs.append((patches, patches[:, :, 0, 0]))
            return pairs

    monkeypatch.setattr(norms_module, "ViTFeatures", Given)
    found = token_norms(nn.Identity(), [torch.zeros(1), torch.zeros(1)])
    for layer, output in enumerate(outputs):
        assert found.counts[layer].sum() == output.numel()
        for share in (0.5, 0.99):
            exact = float(output.flatten().quantile(share))
            assert float(found.quantile(share)[layer]) == pytest.approx(exact, rel=0.02)
        median = float(output.median())
        exact = float((output > 3 * median).double().mean())
        assert float(found.outlier_share()[layer]) == pytest.approx(exact, abs=2e-3)
    assert math.isclose(float(found.quantile(0.5)[1] / found.quantile(0.5)[0]), 2, rel_tol=0.02)


def test_the_heat_map_shows_intervals_that_proportions_can_have():
    found = Findings(Subject.of(torch.nn.Identity(), "model"), pib=PiB((6, 1), 6, 0))
    told = [text.get_text() for text in pib_exhibit([found]).figure.axes[0].texts]
    # Wilson's intervals of 6 and of 1 in 6, by hand: z = 1.96.
    assert told == ["100 (61–100)", "17 (3–56)"]


def probe(folder, layer, cls, miou, checkpoint, spec="entmax15", name="voc2012", goal=None):
    folder.mkdir(parents=True)
    backbone = {"plugins": spec, "checkpoint": checkpoint, "arch": "x", "layers": layer, "cls_token": cls}
    evaluations = [{"split": "val", "iter": n, "metrics": {"mIoU": value}} for n, value in enumerate(miou, 1)]
    record = {"probe": name, "max_iters": goal or len(miou), "backbone": backbone, "evaluations": evaluations}
    (folder / "probe.json").write_text(json.dumps(record))


def test_layers_come_from_probe_files(tmp_path):
    probe(tmp_path / "a", [3], "none", [20.0, 31.5, 30.0], "run/checkpoint0040.pth")
    probe(tmp_path / "b", [5], "concat", [40.0], "run/checkpoint0100.pth")
    probe(tmp_path / "c", [2, 5, 8, 11], "concat", [50.0], "run/checkpoint0100.pth")
    probe(tmp_path / "d", [5], "concat", [60.0], "run/checkpoint0100.pth", name="ade20k")
    found = collect_layers([tmp_path])
    assert [(p.layer, p.cls, p.miou, p.epoch) for p in found] == [(3, False, 31.5, 40), (5, True, 40.0, 100)]
    assert [p.line for p in found] == ["epoch 40", "epoch 100 + [CLS]"]
    (tmp_path / "a" / "probe.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        collect_layers([tmp_path])


def test_unfinished_probes_are_left_out_and_named(tmp_path):
    probe(tmp_path / "done", [3], "none", [20.0], "run/checkpoint0040.pth")
    probe(tmp_path / "early", [5], "none", [70.0, 80.0], "run/checkpoint0040.pth", goal=10)
    with pytest.warns(UserWarning, match="early.probe.json is left out: at iteration 2 of 10"):
        assert [(p.layer, p.miou) for p in collect_layers([tmp_path])] == [(3, 20.0)]
    with (
        pytest.warns(UserWarning, match="is left out"),
        pytest.raises(ValueError, match="no finished VOC probe of a single layer"),
    ):
        collect_layers([tmp_path / "early"])


def test_two_probes_of_one_point_are_refused(tmp_path):
    probe(tmp_path / "a", [3], "none", [20.0], "run/checkpoint0040.pth")
    probe(tmp_path / "b", [3], "concat", [25.0], "run/checkpoint0040.pth")
    probe(tmp_path / "c", [3], "none", [30.0], "run/checkpoint0040.pth", spec="softmax")
    assert len(collect_layers([tmp_path, tmp_path / "a"])) == 3
    probe(tmp_path / "d", [3], "none", [22.0], "run/checkpoint0040.pth")
    with pytest.raises(ValueError, match=r"a.probe.json and .*d.probe.json are both of layer 3 of run/checkpoint0040"):
        collect_layers([tmp_path])
