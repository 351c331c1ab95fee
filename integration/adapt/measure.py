"""What is left of DINOv2's features under entmax15: cosines on photos, and mIoU of a linear head on CamVid.

    python integration/adapt/measure.py --weights dinov2_vits14.pth --dinov2 PATH/TO/dinov2 \
        --photos PHOTOS --camvid CAMVID --work WORK softmax entmax15 calibrated calibrated:0.8

A model may also be a file that `attn-plugins adapt` wrote. Every model is measured once; features and numbers are kept
in WORK, and the table is printed at the end. CAMVID holds images/{train,val}/NAME.jpg and masks/{train,val}/NAME.png
with labels 0 to 10, 11 where there is none.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import attn_plugins
from attn_plugins.adapt.calibrate import calibrate, features, likeness
from attn_plugins.analysis.images import MEAN, STD, find_images
from attn_plugins.checkpoints import build
from attn_plugins.codebases.features import ViTFeatures
from attn_plugins.files import read_json, write_text
from attn_plugins.machine import machine

WIDTH, HEIGHT = 490, 364  # pixels: multiples of 14, near CamVid's 480 x 360; 911 keys
CLASSES, NONE = 11, 11
SEEDS = (0, 1, 2)
STEPS, BATCH, RATE, DECAY = 600, 16, 5e-3, 1e-2  # of the head: AdamW, one cycle
FIT, SHOWN = 12, 24  # photos to fit on, and others to measure on


def main() -> None:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    rows = []
    for name in args.models:
        kept = args.work / f"{file_name(name)}.json"
        if not kept.exists():
            write_text(kept, json.dumps(measure(name, args), indent=2))
        rows.append(read_json(kept))
    print(table(rows))
    print(f"\n{json.dumps(machine())}; every {args.every}. picture of train; seeds {SEEDS}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models",
        nargs="+",
        help="softmax, a spec, calibrated[*FACTOR] or calibrated:SPARSITY[,SIZE...], either with @SPEC (entmax15), "
        "or the file of an adapted one",
    )
    for name in ("weights", "dinov2", "photos", "camvid", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="take every N-th picture of train (default: %(default)s)")
    return parser.parse_args()


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model, by its name in the table."""
    started = time.process_time()
    model, _ = build(checkpoint=args.weights, plugins="softmax", repo=args.dinov2)
    vit = ViTFeatures(model)
    photos, streets = read_photos(args.photos, FIT, SHOWN, 224), read_streets(args.camvid)
    softmax = [features(vit, batch) for batch in (photos, streets)]
    if Path(name).is_file():
        model, _ = build(checkpoint=name, repo=args.dinov2)
        vit, fitting = ViTFeatures(model), 0.0
    else:
        fitting = apply(model, name, args)
    line: dict[str, Any] = {"name": name, "fit seconds": fitting}
    for where, batch, before in zip(("photos", "streets"), (photos, streets), softmax, strict=True):
        line[where] = asdict(likeness(vit, batch, before))
    print(json.dumps(line), flush=True)
    train, val = (read_features(vit, args.camvid, split, n) for split, n in (("train", args.every), ("val", 1)))
    line["mIoU"] = [miou(train, val, seed) for seed in SEEDS]
    line["CPU seconds"] = round(time.process_time() - started)
    print(json.dumps(line), flush=True)
    return line


def apply(model: nn.Module, name: str, args: argparse.Namespace) -> float:
    """Make of a softmax model what ``name`` says; CPU seconds that a calibration took."""
    if not name.startswith("calibrated"):
        if name != "softmax":
            attn_plugins.patch(model, name)
        return 0.0
    how, _, spec = name.partition("@")
    spec = spec or "entmax15"
    kind, _, said = how.partition(":")
    _, _, factor = kind.partition("*")
    share, *sizes = said.split(",") if said else ["none"]
    batches = [read_photos(args.photos, 0, FIT, int(size)) for size in sizes or ["224"]]
    started = time.process_time()
    found = calibrate(model, batches, spec, None if share == "none" else float(share))
    scales = found.scales
    if factor:  # one more, the same for all heads
        layers = tuple(tuple(value * float(factor) for value in layer) for layer in scales.layers)
        scales = replace(scales, layers=layers)
        attn_plugins.patch(model, spec, scales=scales)
    scales.write(args.work / f"{file_name(name)}.scales.json")
    return round(time.process_time() - started, 1)


def file_name(model: str) -> str:
    """What a model's files are called."""
    return model.replace(":", "-").replace("*", "x").replace("/", "_")


def read_photos(folder: Path, first: int, count: int, size: int) -> Tensor:
    """``[count, 3, size, size]`` of a shuffled folder, from the ``first`` on."""
    images = find_images(folder)
    order = np.random.default_rng(0).permutation(len(images))[first : first + count]
    chosen = type(images)(tuple(images.files[i] for i in order), images.root)
    return torch.cat([batch.pixels for batch in chosen.batches(size)])


def read_picture(file: Path) -> Tensor:
    """``[3, HEIGHT, WIDTH]``, normalised."""
    image = Image.open(file).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255)
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)


def read_streets(camvid: Path) -> Tensor:
    """Four pictures of train, to count zeros and compare features on."""
    files = sorted((camvid / "images" / "train").iterdir())
    return torch.stack([read_picture(file) for file in files[:: len(files) // 4][:4]])


def read_features(vit: ViTFeatures, camvid: Path, split: str, every: int) -> tuple[Tensor, Tensor]:
    """Patch features ``[B, N, C]`` in bfloat16's precision, and labels ``[B, H, W]``."""
    tokens, labels = [], []
    for file in sorted((camvid / "images" / split).iterdir())[::every]:
        with torch.autocast("cpu", torch.bfloat16):
            tokens.append(features(vit, read_picture(file).unsqueeze(0))[0][0].half())
        mask = Image.open(camvid / "masks" / split / f"{file.stem}.png")
        labels.append(torch.from_numpy(np.asarray(mask).astype(np.uint8)))
    return torch.stack(tokens), torch.stack(labels)


def miou(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], seed: int) -> float:
    """Of a linear head on frozen patch features, in percent; its logits are resized bilinearly."""
    torch.manual_seed(seed)
    tokens, (h, w) = train[0].float(), (HEIGHT // 14, WIDTH // 14)
    mean, std = tokens.mean((0, 1)), tokens.std((0, 1))
    labels = F.interpolate(train[1].unsqueeze(1).float(), (4 * h, 4 * w), mode="nearest").squeeze(1).long()
    head = nn.Linear(tokens.shape[-1], CLASSES)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)

    def logits(x: Tensor, size: tuple[int, int]) -> Tensor:
        maps = head((x - mean) / std).transpose(1, 2).unflatten(2, (h, w))
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)

    for _ in range(STEPS):
        chosen = torch.randint(len(tokens), (BATCH,))
        out = logits(tokens[chosen], (4 * h, 4 * w))
        loss = F.cross_entropy(out, labels[chosen], ignore_index=NONE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    hits = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for x, label in zip(*val, strict=True):
        with torch.no_grad():
            found = logits(x.float().unsqueeze(0), tuple(label.shape)).argmax(1)[0]
        known = label < CLASSES
        pairs = label[known].long() * CLASSES + found[known]
        hits += torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES)
    union = hits.sum(0) + hits.sum(1) - hits.diag()
    return 100 * float((hits.diag() / union).mean())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | patch cosine · centred · [CLS] | zeros, photos 224 px | zeros, CamVid | mIoU |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        photos, scores = row["photos"], row["mIoU"]
        alike = " · ".join(f"{photos[key]:.3f}" for key in ("patches", "centred", "cls"))
        zeros = f"{photos['zeros']:.1%} | {row['streets']['zeros']:.1%}"
        lines.append(f"| {row['name']} | {alike} | {zeros} | {np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
