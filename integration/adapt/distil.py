"""Distil DINOv2's softmax backbone into entmax15, on photos that `measure.py` does not measure on.

    python integration/adapt/distil.py --weights dinov2_vits14.pth --dinov2 PATH/TO/dinov2 \
        --photos PHOTOS --sparsity 0.8 --steps 160 --out adapted80.pt

`measure.py` draws its photos from the beginning of a shuffled folder; the first hundred of that order are left out
here. Killed, it goes on when it is started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from attn_plugins.adapt import distil
from attn_plugins.analysis.images import find_images
from attn_plugins.checkpoints import build, save
from attn_plugins.params import ORDERS
from attn_plugins.progress import printed_progress

LEFT_OUT = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "dinov2", "photos", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, default=0.8, help="of the calibration (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=160, help="(default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[196], help="(default: 196)")
    parser.add_argument("--lr", type=float, default=3e-5, help="(default: %(default)s)")
    parser.add_argument("--plugins", default="entmax15", metavar="SPEC", help="(default: %(default)s)")
    parser.add_argument("--anneal", choices=ORDERS, help="raise alpha from softmax in half of the steps")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--amp", default="bf16", help="(default: %(default)s)")
    args = parser.parse_args()
    files = find_images(args.photos).files
    order = np.random.default_rng(0).permutation(len(files))
    chosen = [files[index] for index in sorted(order[LEFT_OUT:])]
    model, _ = build(checkpoint=args.weights, plugins="softmax", repo=args.dinov2)
    options = {name: getattr(args, name) for name in ("steps", "sparsity", "lr", "amp", "anneal", "seed")} | {
        "sizes": tuple(args.sizes)
    }
    run = args.out.with_name(f"{args.out.name}.run")
    print(distil(model, chosen, args.plugins, folder=run, progress=printed_progress("distil"), **options))
    save(args.out, model)


if __name__ == "__main__":
    main()
