"""``attn-plugins verify``: does this checkpoint compute what it says."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parser"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="run a checkpoint's model once and say what each layer computed",
        description="Build a checkpoint's model, run it on noise, and print for every patched layer how often it "
        "answered, by which backend, row sums, exact zeros and the difference to the reference; and whether softmax by "
        "the same patch reproduces the unpatched model. The status is 1 where it does not compute what it says.",
    )
    parser.add_argument("checkpoint", metavar="FILE[=SPEC]", help="a file or folder, as `attn-plugins inspect` reads")
    parser.add_argument("--arch", default="auto", help="where a checkpoint does not tell: timm/NAME, dinov2/NAME, ...")
    parser.add_argument("--plugins", default="auto", help="spec, where a checkpoint does not tell (default: its own)")
    parser.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from ..checkpoints import build, reference
    from ..checkpoints.verdict import verified

    path, spec = reference(args.checkpoint)
    model, identity = build(args.arch, path, spec or args.plugins, args.repo, other_spec=spec is not None)
    found = verified(model)
    assert found is not None  # build patches every model, softmax's too
    print(f"{identity['arch']}, plugins {identity['plugins']} ({identity['plugins_source']})")
    print(found)
    return 0 if found.ok else 1
