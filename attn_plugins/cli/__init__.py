"""The ``attn-plugins`` command: one module a subcommand, imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import PluginImportError
from ..plugin_modules import ImportPlugins, import_plugin_modules

__all__ = ["main"]

# Each subcommand, and the extra of the package that has what it imports beyond torch.
COMMANDS = {
    "list": None,
    "demo": "demo",
    "apply": None,
    "inspect": None,
    "verify": "probes",
    "probe": "probes",
    "table": None,
    "data": "probes",
    "analyze": "demo",
    "report": "demo",
    "bench": "test",
    "env": None,
}


class _Parser(argparse.ArgumentParser):
    """Of every command and of the kinds of it, which argparse makes of their parent's class: all take ``--import``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        ImportPlugins.add_to(self)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the status is 0, 1 (it found problems) or 2 (bad usage or input)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(prog="attn-plugins", description="Attention plugins for Vision Transformers.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Only the command that is asked for is imported, so that `list` does not wait for mmseg.
    wanted = [arguments[0]] if arguments and arguments[0] in COMMANDS else COMMANDS
    for name in wanted:
        importlib.import_module(f"{__name__}.{name}").add_parser(subparsers)
    args = parser.parse_args(arguments)
    try:
        import_plugin_modules()
        return int(args.func(args))
    except (ValueError, PluginImportError, FileNotFoundError, FileExistsError) as error:
        message = str(error)
    except ModuleNotFoundError as error:
        extra = COMMANDS[args.command]
        if extra is None or error.name is None or error.name.startswith("attn_plugins"):
            raise
        message = f"needs {error.name}: pip install 'attn_plugins[{extra}]'"
    print(f"attn-plugins {args.command}: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
