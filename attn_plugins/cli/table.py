"""``attn-plugins table WORK_DIRS…``: finished probes as the paper's Table 1."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("table", help="collect finished probes into Table 1, beside the paper's figures")
    parser.add_argument("work_dirs", nargs="+", metavar="WORK_DIR", help="searched for probe.json files")
    parser.add_argument("--format", choices=("markdown", "csv", "latex", "json"), default="markdown")
    parser.add_argument("--no-paper", action="store_true", help="leave the paper's rows out")
    parser.add_argument("--out", type=Path, help="write it to a file instead of printing it")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from ..files import write_text
    from ..results import collect, render

    text = render(collect(args.work_dirs), args.format, paper=not args.no_paper)
    if args.out is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        write_text(args.out, text)
    return 0
