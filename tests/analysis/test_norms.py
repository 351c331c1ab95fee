"""Token norms against torch, layers from probe files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attn_plugins.analysis.figures import layers_exhibit
from attn_plugins.analysis.layers import collect_layers
from attn_plugins.analysis.norms import token_norms
from attn_plugins.results import write_images


class Given(nn.Module):
    """A ViT of two blocks over 8 x 8 patches of 4 pixels; a patch's norm is its pixels' value, then twice that."""

    class Block(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens * 2

    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.embed_dim = 4, 3
        self.blocks = nn.ModuleList([self.Block(), self.Block()])
        self.norm = nn.LayerNorm(3)

    def forward_features(self, images: Tensor) -> Tensor:
        value = images[:, :1, 2::4, 2::4].flatten(2).transpose(1, 2) / 2
        tokens = torch.cat([torch.ones(len(images), 1, 3), torch.cat([value * 0, value, value * 0], -1)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def test_token_norms_are_those_of_the_block_outputs() -> None:
    torch.manual_seed(0)
    values = torch.rand(40, 64) * 9 + 1
    values[:, :3] *= 40
    pixels = values.view(40, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    found = token_norms(Given(), pixels.split(20))
    for layer, output in enumerate((values, values * 2)):
        assert found.counts[layer].sum() == output.numel()
        for share in (0.5, 0.99):
            exact = float(output.flatten().quantile(share))
            assert float(found.quantile(share)[layer]) == pytest.approx(exact, rel=0.02)
        median = float(output.median())
        exact = float((output > 3 * median).double().mean())
        assert float(found.outlier_share()[layer]) == pytest.approx(exact, abs=2e-3)
        assert float(found.above(150)[layer]) == pytest.approx(float((output > 150).double().mean()), abs=2e-3)
    assert float(found.above(150)[0]) < float(found.above(150)[1]), "an absolute threshold depends on the scale"
    row = found.table(120.0)[1]
    assert row["above_120"] == float(found.above(120)[1]) and row["above_3_medians"] == float(found.outlier_share()[1])


def probe(
    folder: Path,
    layer: list[int],
    cls: str,
    miou: list[float],
    checkpoint: str,
    spec: str = "entmax15",
    name: str = "voc2012",
    goal: int | None = None,
) -> None:
    folder.mkdir(parents=True)
    backbone = {"plugins": spec, "checkpoint": checkpoint, "arch": "x", "layers": layer, "cls_token": cls}
    evaluations = [{"split": "val", "iter": n, "metrics": {"mIoU": value}} for n, value in enumerate(miou, 1)]
    record = {"probe": name, "max_iters": goal or len(miou), "backbone": backbone, "evaluations": evaluations}
    (folder / "probe.json").write_text(json.dumps(record))


def test_layers_come_from_probe_files(tmp_path: Path) -> None:
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


def test_unfinished_probes_are_left_out_and_named(tmp_path: Path) -> None:
    probe(tmp_path / "done", [3], "none", [20.0], "run/checkpoint0040.pth")
    probe(tmp_path / "early", [5], "none", [70.0, 80.0], "run/checkpoint0040.pth", goal=10)
    with pytest.warns(UserWarning, match="early.probe.json is left out: at iteration 2 of 10"):
        assert [(p.layer, p.miou) for p in collect_layers([tmp_path])] == [(3, 20.0)]
    with (
        pytest.warns(UserWarning, match="is left out"),
        pytest.raises(ValueError, match="no finished VOC probe of a single layer"),
    ):
        collect_layers([tmp_path / "early"])


def test_two_probes_of_one_point_are_refused(tmp_path: Path) -> None:
    probe(tmp_path / "a", [3], "none", [20.0], "run/checkpoint0040.pth")
    probe(tmp_path / "b", [3], "concat", [25.0], "run/checkpoint0040.pth")
    probe(tmp_path / "c", [3], "none", [30.0], "run/checkpoint0040.pth", spec="softmax")
    assert len(collect_layers([tmp_path, tmp_path / "a"])) == 3
    probe(tmp_path / "d", [3], "none", [22.0], "run/checkpoint0040.pth")
    with pytest.raises(ValueError, match=r"a.probe.json and .*d.probe.json are both of layer 3 of run/checkpoint0040"):
        collect_layers([tmp_path])


def with_images(folder: Path, values: float, seed: int) -> NDArray[np.float64]:
    """Keep what 30 images contributed, of which the last evaluation is ``values`` percent right on the average."""
    g = np.random.default_rng(seed)
    shares: NDArray[np.float64] = np.clip(values / 100 + g.normal(0, 0.1, (30, 2)), 0.01, 1)
    write_images(folder, 1, {f"/v/{i}.png": [(1000 * share).tolist(), [1000, 1000]] for i, share in enumerate(shares)})
    return shares


def test_intervals_of_layers_are_over_the_images_that_probes_kept(tmp_path: Path) -> None:
    probe(tmp_path / "a", [0], "none", [50.0, 40.0], "run/checkpoint0040.pth")
    probe(tmp_path / "b", [1], "none", [20.0], "run/checkpoint0040.pth")
    shares = with_images(tmp_path / "a", 40, 0)
    kept, without = collect_layers([tmp_path])
    g = np.random.default_rng(1)
    means = [100 * shares[g.integers(30, size=30)].mean() for _ in range(4000)]
    expected = 100 * shares.mean() - np.quantile(means, 0.025)
    assert kept.below == pytest.approx(expected, rel=0.1) and kept.above > 0
    assert np.isnan(without.below) and np.isnan(without.above)


@pytest.mark.parametrize("checkpoints", [1, 7])
def test_layers_are_drawn_with_their_spread(tmp_path: Path, checkpoints: int) -> None:
    for epoch in range(checkpoints):
        for layer in range(2):
            folder = tmp_path / f"{epoch}-{layer}"
            probe(folder, [layer], "none", [40.0 + epoch], f"run/checkpoint{epoch:04d}.pth")
            with_images(folder, 40, layer)
    exhibit = layers_exhibit(collect_layers([tmp_path]))
    names = {panel.name for panel in exhibit.panels}
    assert names == ({"miou"} if checkpoints == 1 else {"miou", "miou-spread"})
    assert all(row["above"] > 0 for row in exhibit.rows)
    for panel in exhibit.panels:
        assert panel.render("png").startswith(b"\x89PNG")
