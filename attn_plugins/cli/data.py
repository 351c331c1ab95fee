"""``attn-plugins data``: check a real data root, convert what a source ships, or write the built-in scenes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser"]

DATASETS = ("voc2012", "ade20k", "cityscapes", "nyuv2", "kitti", "sunrgbd", "imagenet")
CONVERTED = ("imagenet", "voc2012", "ade20k", "cityscapes", "nyuv2", "kitti", "sunrgbd")


def add_parser(subparsers: Any) -> None:
    """Add ``data check``, ``data convert`` and ``data make``."""
    parser = subparsers.add_parser("data", help="check or convert a data set's folder, or write one of rendered scenes")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    checking = actions.add_parser("check", help="say what is missing or malformed in a data root; status 1 if anything")
    checking.add_argument("dataset", choices=DATASETS)
    checking.add_argument("root", type=Path, help="the data root that the probe will be given")
    checking.add_argument("--own", action="store_true", help="not the official release: ask for no counts and sizes")
    checking.set_defaults(func=run_check)

    converting = actions.add_parser("convert", help="bring what a data set's page ships into the layout of its probe")
    converting.add_argument("dataset", choices=CONVERTED, metavar="NAME", help=", ".join(CONVERTED))
    converting.add_argument("source", type=Path, metavar="SOURCE", help="folder that the archives were unpacked in")
    converting.add_argument("out", type=Path, metavar="OUT", help="the data root: new, empty, or of an interrupted run")
    converting.add_argument(
        "--filled", action="store_true", help="nyuv2, sunrgbd: depth with its holes filled, not as measured"
    )
    converting.set_defaults(func=run_convert)

    making = actions.add_parser("make", help="write rendered scenes in a data set's real layout")
    making.add_argument("dataset", choices=DATASETS)
    making.add_argument("root", type=Path, help="folder that the official archives would be unpacked in")
    making.add_argument("--num-train", type=int, help="training scenes")
    making.add_argument("--num-val", type=int, help="validation scenes")
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels; default: the data set's own")
    making.set_defaults(func=run_make)


def run_check(args: argparse.Namespace) -> int:
    """Print every problem with its remedy; 1 when there is one."""
    from attn_plugins.data.check import check

    problems = check(args.dataset, args.root, args.own)
    for problem in problems:
        print(problem)
    print(f"{args.dataset} in {args.root}: " + (f"{len(problems)} problem(s)" if problems else "no problems found"))
    return 1 if problems else 0


def run_convert(args: argparse.Namespace) -> int:
    """Convert; print what was done, what to know about it, and the data root."""
    from attn_plugins.data.convert import Options, convert
    from attn_plugins.progress import printed_progress

    options = Options(filled=args.filled)
    done, notes = convert(args.dataset, args.source, args.out, options, progress=printed_progress(args.dataset))
    print(f"{args.dataset} from {args.source}: {done}")
    for note in notes:
        print(f"note: {note}")
    print(f"data root: {args.out}\nnext: attn-plugins data check {args.dataset} {args.out}")
    return 0


def run_make(args: argparse.Namespace) -> int:
    """Write the scenes; print the data root."""
    from attn_plugins.data.layouts import LAYOUTS, printed_progress

    chosen = {
        "num_train": args.num_train,
        "num_val": args.num_val,
        "size": tuple(args.size) if args.size else None,
    }
    options = {name: value for name, value in chosen.items() if value is not None}
    root = LAYOUTS[args.dataset](args.root, seed=args.seed, progress=printed_progress(args.dataset), **options)
    print(f"data root: {root}")
    return 0
