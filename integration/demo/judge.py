"""Judge what pretrain.py trained: have features become useful? Scenes never seen, beside the same ViT untrained.

python judge.py --out runs
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_plugins.analysis.attention import statistics
from attn_plugins.analysis.images import MEAN, STD
from attn_plugins.checkpoints import read
from attn_plugins.codebases.features import ViTFeatures
from attn_plugins.data.scenes import NUM_CLASSES, render
from attn_plugins.demo.linear import fit, score
from attn_plugins.demo.pretrain import Method, Recipe
from attn_plugins.text import columns

SEED, SIZE = 200, (128, 160)
TRAIN, VAL = 300, 150
"""Scenes that the linear head is fitted on and [CLS] is compared with, and those that are scored."""


def judge(out: Path) -> str:
    """A table: linear mIoU of patch tokens, 20-NN accuracy of [CLS], exact zeros; untrained, trained, and chance.

    Raises:
        SystemExit: `out` holds no training state.
    """
    images, masks, labels = scenes()
    rows: list[tuple[str, ...]] = [("weights", "steps", "patch mIoU", "[CLS] accuracy", "exact zeros")]
    for path in sorted(out.glob("*.pth")):
        state = read(path)
        (spec,) = state["methods"]
        method = Method(spec, Recipe(**state["recipe"]))
        rows.append((f"{spec}, untrained", "0", *judged(method.backbone, images, masks, labels)))
        method.load(state["methods"][spec])
        rows.append((spec, str(state["step"]), *judged(method.backbone, images, masks, labels)))
    if len(rows) == 1:
        raise SystemExit(f"{out} holds no training state (*.pth): run pretrain.py first")
    background = score(torch.zeros_like(masks[TRAIN:]), masks[TRAIN:], NUM_CLASSES + 1)
    rows.append(("background everywhere, any class", "", str(background), f"{100 / NUM_CLASSES:.1f}", ""))
    return "\n".join(columns(rows))


def scenes() -> tuple[Tensor, Tensor, Tensor]:
    """Images `[N, 3, H, W]`, the class at the middle of each patch `[N, h·w]`, and the main object's class `[N]`."""
    found = [render(SEED, index, SIZE) for index in range(TRAIN + VAL)]
    stack = torch.stack([torch.from_numpy(scene.image) for scene in found]).float() / 255
    images = ((stack - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()
    patch = Recipe().patch_size
    masks = torch.stack([torch.from_numpy(scene.mask[patch // 2 :: patch, patch // 2 :: patch]) for scene in found])
    return images, masks.long().flatten(1), torch.tensor([scene.label for scene in found])


def judged(backbone: nn.Module, images: Tensor, masks: Tensor, labels: Tensor) -> tuple[str, str, str]:
    """mIoU of a linear head on patch tokens, accuracy of 20 nearest neighbours by [CLS], share of exact zeros."""
    features = ViTFeatures(backbone.eval())
    with torch.no_grad():
        read_out = [features(batch, [-1])[0] for batch in images.split(50)]
    patches = torch.cat([tokens.flatten(2).transpose(1, 2) for tokens, _ in read_out])
    cls = F.normalize(torch.cat([token for _, token in read_out]), dim=-1)
    found = fit(patches[:TRAIN], masks[:TRAIN], NUM_CLASSES + 1)(patches[TRAIN:])
    nearest = labels[:TRAIN][(cls[TRAIN:] @ cls[:TRAIN].T).topk(20).indices]
    votes = F.one_hot(nearest, NUM_CLASSES + 1).sum(1).argmax(1)
    accuracy = (votes == labels[TRAIN:]).double().mean().item()
    zeros = statistics(backbone, images[:32]).zero_share.mean().item()
    return str(score(found, masks[TRAIN:], NUM_CLASSES + 1)), f"{100 * accuracy:.1f}", f"{100 * zeros:.1f} %"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that pretrain.py trained in")
    print(judge(parser.parse_args().out))
