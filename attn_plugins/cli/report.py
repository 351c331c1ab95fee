"""``attn-plugins report CHECKPOINT… --data D --out report.html``: every analysis on one self-contained page."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from .analyze import add_subject_options, add_view_options, find_data, settings

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("report", help="every analysis on one self-contained HTML page")
    add_subject_options(parser, required=False)
    add_view_options(parser)
    parser.add_argument("--work-dirs", nargs="+", type=Path, default=[], help="finished probes, for Table 1")
    parser.add_argument("--layer-dirs", nargs="+", type=Path, default=[], help="probes of single layers, for Figure 2b")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: %(default)s)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the page, and PNG and CSV of every figure beside it."""
    from ..analysis.report import write_report
    from ..analysis.subjects import from_checkpoints

    looked_at = settings(args)
    sources = find_data(args) if args.data is not None else None
    subjects = from_checkpoints(args.checkpoints, args.arch, args.plugins, args.repo)
    command = shlex.join(["attn-plugins", *sys.argv[1:]])
    write_report(
        args.out,
        subjects,
        sources,
        looked_at,
        work_dirs=args.work_dirs,
        layer_dirs=args.layer_dirs,
        command=command,
    )
    print(f"{args.out} ({args.out.stat().st_size / 1e6:.1f} MB), figures and numbers in {args.out.with_suffix('')}/")
    return 0
