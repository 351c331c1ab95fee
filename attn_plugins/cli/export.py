"""``attn-plugins export PROBE_OR_CHECKPOINT --onnx FILE``: a file that runs where this package is not installed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a backbone or a trained probe as ONNX, checked in onnxruntime",
        description="Writes one file of plain operators that takes images of any size and number, runs it on some that "
        "it was not recorded with, and gives it its name only if it computes what the model does. Spec, digests, "
        "normalisation and classes are in its metadata.",
    )
    parser.add_argument("source", type=Path, help="a probe's work dir, checkpoint or bundle; or a backbone")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="write ONNX")
    parser.add_argument("--program", type=Path, metavar="FILE", help="write a program for torch.export.load (.pt2)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fix the images' size (default: any)")
    parser.add_argument("--opset", type=int, help="of ONNX (default: torch's)")
    parser.add_argument("--tolerance", type=float, help="largest error, as a share of the largest value (default 1e-3)")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.add_argument("--checkpoint", type=Path, help="the backbone of a probe (default: found by its digest)")
    parser.add_argument("--arch", help="of a backbone that does not tell: timm/NAME, transformers/FOLDER, …")
    parser.add_argument("--plugins", help="the spec, where a backbone does not tell")
    parser.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help=f"{name}, 0 to 255: a backbone takes pixels"
        )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Load, record, check, write."""
    if args.onnx is None and args.program is None:
        raise ValueError("nothing to write: give --onnx FILE or --program FILE")
    if (args.mean is None) != (args.std is None):
        raise ValueError("--mean and --std go together")
    if not args.source.exists():
        raise FileNotFoundError(f"{args.source} does not exist")

    from ..export.files import TOLERANCE, require_free, write_graph
    from ..export.graphs import graph_of

    if args.onnx is not None:
        import onnxruntime  # noqa: F401  # before minutes of work
        import onnxscript  # noqa: F401
    require_free((args.onnx, args.program), args.force)
    normalisation = (args.mean, args.std) if args.mean else None
    graph = graph_of(args.source, args.checkpoint, normalisation, arch=args.arch, plugins=args.plugins, repo=args.repo)
    size = tuple(args.size) if args.size else None
    tolerance = TOLERANCE if args.tolerance is None else args.tolerance
    write_graph(graph, args.onnx, args.program, size, args.opset, tolerance)
    for path in filter(None, (args.onnx, args.program)):
        print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB): {graph.told['task']}, spec {graph.told['spec']}")
    print(f"  input: {graph.told['input']}; output: {graph.told['output']}")
    return 0
