"""``attn-plugins demo``: a pretrained backbone made sparse; or pre-training and probing, end to end."""

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
        help="make a softmax backbone sparse and show what it is worth; or pre-train, probe and compare",
        description="Takes a small ViT that was pre-trained with softmax and is shipped, and shows it under entmax15: "
        "verified, patched only, calibrated, adapted for a minute, each with a linear head on rendered "
        "scenes; prints a table and draws a picture. --checkpoint and --weights do the same with a backbone of yours. "
        "--pretrain is the long way: renders a small PASCAL VOC, pre-trains a ViT for every method with DINO "
        "(lightly), probes them with `mim train mmseg voc2012_linear` and compares them; a second run goes on where "
        "the first one stopped.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder of the run (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", type=Path, metavar="FILE", help="a softmax backbone of yours")
    which.add_argument(
        "--weights", metavar="NAME", help="official weights, downloaded: dinov2_vits14, dino_vits16, ..."
    )
    which.add_argument("--pretrain", action="store_true", help="pre-train every method, probe and compare")
    parser.add_argument("--arch", default="auto", help="where --checkpoint does not tell: timm/NAME, dinov2/NAME, ...")
    parser.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")
    long = parser.add_argument_group("of --pretrain")
    long.add_argument("--seed", type=int, help="of scenes, weights and crops (default: 0)")
    long.add_argument("--steps", type=int, help="pre-training steps of every method")
    long.add_argument("--quick", action="store_true", help="a third of the steps and iterations")
    long.add_argument("--methods", nargs="+", metavar="SPEC", help="plugin specs to compare")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    if args.pretrain:
        return _pretrain(args)
    given = [
        f"--{name}" for name in _OF_PRETRAINING if not (getattr(args, name) is None or getattr(args, name) is False)
    ]
    if given:
        raise ValueError(f"{given[0]} belongs to a pre-training; say --pretrain too, or leave it out")
    if args.checkpoint is None and (args.arch != "auto" or args.repo):
        raise ValueError("--arch and --repo belong to --checkpoint; give that too, or leave them out")
    from ..demo.backbone import show_backbone

    checkpoint = args.checkpoint
    if args.weights is not None:
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
