"""What a training step of DINOv2 takes under entmax15, time and memory, beside softmax's.

    python integration/adapt/cost.py --weights dinov2_vits14.pth --dinov2 PATH/TO/dinov2 --photos PHOTOS \
        --size 224 --batch 16 entmax15 adapted90.pt

A step is forward, backward and AdamW on photos. Models take turns in one process, whose processor time is counted; the
most memory is that of a process that takes two steps and does nothing else. Sparse attention takes the less, the
fewer keys have a weight, so a model with random weights tells nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch

from attn_plugins.analysis.images import find_images
from attn_plugins.bench.report import as_dict, table
from attn_plugins.bench.shapes import cpu_clock
from attn_plugins.bench.step import BASELINE, training_step
from attn_plugins.bench.timing import in_turns, peak_mib
from attn_plugins.checkpoints import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="a spec, or the file of an adapted one")
    for name in ("weights", "dinov2", "photos"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images per step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [BASELINE, *args.models]
    timings = in_turns({name: step(name, args) for name in names}, args.repeats, warmup=1, clock=cpu_clock)
    settings = {"size": args.size, "batch": args.batch}
    print(table(as_dict("training step, processor time", BASELINE, timings, "cpu", settings)))
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            print(f"{name}: peak {process.apply(peak, (name, args)):.0f} MiB", flush=True)


def step(name: str, args: argparse.Namespace) -> Callable[[], None]:
    """One training step of a model: a file that was adapted, or the weights under a spec."""
    if Path(name).is_file():
        model, _ = build(checkpoint=name, repo=args.dinov2)
    else:
        model, _ = build(checkpoint=args.weights, plugins=name, repo=args.dinov2)
    photos = find_images(args.photos).sample(args.batch, seed=0)
    pixels = torch.cat([batch.pixels for batch in photos.batches(args.size)])
    labels = torch.arange(args.batch)  # of a loss on [CLS]
    return training_step(model.train().requires_grad_(True), pixels, labels)


def peak(name: str, args: argparse.Namespace) -> float:
    """MiB that this process held at most after two steps."""
    torch.set_num_threads(1)
    taken = step(name, args)
    for _ in range(2):
        taken()
    return peak_mib()


if __name__ == "__main__":
    main()
