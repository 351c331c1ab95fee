"""``attn-plugins demo``: the main job end to end on built-in data, or on a backbone of yours."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]

_OF_PRETRAINING = ("steps", "methods", "quick", "seed")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="render scenes, pre-train small ViTs, probe and compare them; or make a backbone of yours sparse",
        description="Renders a small PASCAL VOC, pre-trains a ViT for every method with DINO (lightly), probes the "
        "frozen backbones with `mim train mmseg voc2012_linear` and compares them. A second run goes on where the "
        "first one stopped. With --checkpoint or --weights nothing is pre-trained: a softmax backbone is shown under "
        "entmax15: patched only, calibrated, and adapted for a minute, each verified, probed and drawn.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder of the run (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", type=Path, metavar="FILE", help="a softmax backbone of yours")
    which.add_argument(
        "--weights", metavar="NAME", help="official weights, downloaded: dinov2_vits14, dino_vits16, ..."
    )
    parser.add_argument("--arch", default="auto", help="where --checkpoint does not tell: timm/NAME, dinov2/NAME, ...")
    parser.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")
    long = parser.add_argument_group("of the pre-training")
    long.add_argument("--seed", type=int, help="of scenes, weights and crops (default: 0)")
    long.add_argument("--steps", type=int, help="pre-training steps of every method")
    long.add_argument("--quick", action="store_true", help="a third of the steps and iterations")
    long.add_argument("--methods", nargs="+", metavar="SPEC", help="plugin specs to compare")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    if args.checkpoint is None and (args.arch != "auto" or args.repo):
        raise ValueError("--arch and --repo belong to --checkpoint; give that too, or leave them out")
    if args.checkpoint is None and args.weights is None:
        return _pretrain(args)
    values = vars(args)
    given = [f"--{name}" for name in _OF_PRETRAINING if values[name] is not None and values[name] is not False]
    if given:
        raise ValueError(f"{given[0]} belongs to the pre-training; leave it out with --checkpoint and --weights")
    from ..demo.backbone import show_backbone

    if args.weights is None:
        checkpoint = args.checkpoint
    else:
        from ..demo.official import download

        checkpoint = download(args.weights)
    show_backbone(checkpoint, args.out, args.arch, args.repo)
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    from .. import demo

    settings = demo.Settings(methods=tuple(args.methods or demo.METHODS), recipe=demo.Recipe(seed=args.seed or 0))
    if args.quick:
        settings = settings.shortened(3)
    if args.steps is not None:
        settings = replace(settings, recipe=replace(settings.recipe, steps=args.steps))
    demo.run(args.out, settings, command=shlex.join(["attn-plugins", *sys.argv[1:]]))
    return 0
