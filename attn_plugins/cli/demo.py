"""``attn-plugins demo``: the main job end to end on built-in data."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="render scenes, pre-train small ViTs with DINO, probe and compare them",
        description="Renders a small PASCAL VOC, pre-trains a ViT for every method with DINO (lightly), probes the "
        "frozen backbones with `mim train mmseg voc2012_linear` and compares them. A second run goes on where the "
        "first one stopped. With --checkpoint nothing is trained: a backbone of yours is shown under entmax15.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder of the run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="pre-training steps of every method")
    parser.add_argument("--quick", action="store_true", help="a third of the steps and iterations")
    parser.add_argument("--methods", nargs="+", metavar="SPEC", help="plugin specs to compare")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="instead, make this softmax backbone sparse: verified, patched only, calibrated, probed, drawn",
    )
    parser.add_argument("--arch", default="auto", help="where --checkpoint does not tell: timm/NAME, dinov2/NAME, ...")
    parser.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    if args.checkpoint is not None:
        from ..demo.backbone import show_backbone

        show_backbone(args.checkpoint, args.out, args.arch, args.repo)
        return 0
    from .. import demo

    settings = demo.Settings(methods=tuple(args.methods or demo.METHODS), recipe=demo.Recipe(seed=args.seed))
    if args.quick:
        settings = settings.shortened(3)
    if args.steps is not None:
        settings = replace(settings, recipe=replace(settings.recipe, steps=args.steps))
    demo.run(args.out, settings, command=shlex.join(["attn-plugins", *sys.argv[1:]]))
    return 0
