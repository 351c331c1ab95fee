"""``attn-plugins apply``: put ``--attn_plugins`` into an official DINO checkout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..trainers.checkout import apply, revert, status
from ..trainers.insertions import available, load

__all__ = ["add_parser"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "apply",
        help="add the plugin flag to an official trainer's checkout",
        description="Insert a few lines into facebookresearch/dino or dinov2 that give its scripts the plugin flag "
        "(--attn_plugins SPEC, student.attn_plugins=SPEC). All files are changed or none.",
    )
    parser.add_argument("trainer", choices=available())
    parser.add_argument("path", type=Path, help="the checkout")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="say whether it fits, change nothing")
    mode.add_argument("--revert", action="store_true", help="take the lines out again")
    parser.add_argument(
        "--3way", dest="three_way", action="store_true", help="merge into files that differ from upstream"
    )
    parser.set_defaults(func=run)


STATES = {
    "clean": "the patch fits",
    "applied": "the patch is applied",
    "half applied": "the patch is half applied, by a run that was killed: apply again to complete it, or --revert",
}


def run(args: argparse.Namespace) -> int:
    patch = load(args.trainer)
    if args.check:
        state = status(patch, args.path)
        print(f"{args.path}: {STATES[state]}")
        return int(state == "half applied")
    changed = (revert if args.revert else apply)(patch, args.path, three_way=args.three_way)
    if not changed:
        print(f"{args.path}: nothing to do, the patch is {'not there' if args.revert else 'applied already'}")
    for file in changed:
        lines = sum(len(inserted) for _, inserted in patch.insertions[file])
        print(f"{args.path / file}: {lines} lines {'removed' if args.revert else 'inserted'}")
    return 0
