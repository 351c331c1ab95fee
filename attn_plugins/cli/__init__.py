"""The ``attn-plugins`` command: one module a subcommand, imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

__all__ = ["main"]

COMMANDS = ("list", "demo", "apply", "inspect", "probe", "table", "data", "analyze", "report", "bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the status is 0, 1 (it found problems) or 2 (bad usage or input)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="attn-plugins", description="Attention plugins for Vision Transformers."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Only the command that is asked for is imported, so that `list` does not wait for mmseg.
    wanted = [arguments[0]] if arguments and arguments[0] in COMMANDS else COMMANDS
    for name in wanted:
        importlib.import_module(f"{__name__}.{name}").add_parser(subparsers)
    args = parser.parse_args(arguments)
    try:
        return int(args.func(args))
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"attn-plugins {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
