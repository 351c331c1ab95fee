"""``attn-plugins demo``: the main job end to end on built-in data, or on a backbone of yours."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]

OUT = Path("demo_out")
_OF_PRETRAINING = ("steps", "methods", "quick", "seed")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="a small pretrained ViT made sparse, probed and drawn; the same of a backbone of yours; or pre-training",
        description="Shows a softmax backbone under entmax15: patched only, calibrated, and adapted for a minute, each "
        "verified, probed on rendered scenes and drawn. The backbone is a small ViT that comes with the package, a "
        "file of yours (--checkpoint), or an official one (--weights). With --pretrain a small PASCAL VOC is rendered, "
        "a ViT pre-trained for every method with DINO (lightly) and each probed with `mim train mmseg "
        "voc2012_linear`; a second run goes on where the first one stopped.",
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default: in demo_out, by what is shown)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", type=Path, metavar="FILE", help="a softmax backbone of yours")
    which.add_argument(
        "--weights", metavar="NAME", help="official weights, downloaded: dinov2_vits14, dino_vits16, ..."
    )
    which.add_argument("--pretrain", action="store_true", help="pre-train ViTs from nothing, probe and compare them")
    parser.add_argument("--arch", default="auto", help="where --checkpoint does not tell: timm/NAME, dinov2/NAME, ...")
    parser.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")
    long = parser.add_argument_group("with --pretrain")
    long.add_argument("--seed", type=int, help="of scenes, weights and crops (default: 0)")
    long.add_argument("--steps", type=int, help="pre-training steps of every method")
    long.add_argument("--quick", action="store_true", help="a third of the steps and iterations")
    long.add_argument("--methods", nargs="+", metavar="SPEC", help="plugin specs to compare")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    if args.checkpoint is None and (args.arch != "auto" or args.repo):
        raise ValueError("--arch and --repo belong to --checkpoint; give that too, or leave them out")
    if args.pretrain:
        return _pretrain(args, args.out or OUT / "pretrain")
    values = vars(args)
    given = [f"--{name}" for name in _OF_PRETRAINING if values[name] is not None and values[name] is not False]
    if given:
        raise ValueError(f"{given[0]} belongs to --pretrain; give that too, or leave it out")
    from ..demo import backbone

    if args.weights is not None:
        from ..demo.official import download

        backbone.show_backbone(download(args.weights), args.out or OUT / args.weights, args.arch, args.repo)
    elif args.checkpoint is not None:
        backbone.show_backbone(args.checkpoint, args.out or OUT / args.checkpoint.stem, args.arch, args.repo)
    else:
        backbone.show_shipped(args.out or OUT / "shipped")
    return 0


def _pretrain(args: argparse.Namespace, out: Path) -> int:
    from .. import demo

    settings = demo.Settings(methods=tuple(args.methods or demo.METHODS), recipe=demo.Recipe(seed=args.seed or 0))
    if args.quick:
        settings = settings.shortened(3)
    if args.steps is not None:
        settings = replace(settings, recipe=replace(settings.recipe, steps=args.steps))
    demo.run(out, settings, command=shlex.join(["attn-plugins", *sys.argv[1:]]))
    return 0
