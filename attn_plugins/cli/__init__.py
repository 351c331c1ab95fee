"""The ``attn-plugins`` command: one module a subcommand, imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..errors import LibraryLoadError, PluginImportError
from ..plugin_modules import ImportPlugins, import_plugin_modules

__all__ = ["main", "parser_of"]

# Each subcommand, and the extras of the package that have what it imports beyond torch.
COMMANDS = {
    "list": None,
    "demo": "demo",
    "apply": None,
    "inspect": "probes",
    "verify": "probes",
    "calibrate": "probes,analysis",
    "adapt": "probes,analysis",
    "probe": "probes",
    "predict": "probes",
    "sweep": "probes",
    "watch": "probes,analysis",
    "export": "probes,export",
    "table": None,
    "data": "probes",
    "analyze": "probes,analysis",
    "report": "probes,analysis",
    "bench": "test",
    "env": None,
}

# What only some models need, and no extra that a command names has.
SEPARATE = ("transformers", "xformers", "adasplash", "wandb", "peft")


class _Parser(argparse.ArgumentParser):
    """Of every command and of the kinds of it, which argparse makes of their parent's class: all take ``--import``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        ImportPlugins.add_to(self)


def parser_of(commands: Sequence[str]) -> argparse.ArgumentParser:
    """The program's parser, which knows these subcommands."""
    parser = _Parser(prog="attn-plugins", description="Attention plugins for Vision Transformers.")
    parser.add_argument("--version", action="version", version=f"attn-plugins {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in commands:
        importlib.import_module(f"{__name__}.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the status is 0, 1 (it found problems) or 2 (bad usage or input)."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]  # the command `list` has that name here
    # Only the command that is asked for is imported, so that `list` does not wait for mmseg.
    args = parser_of([arguments[0]] if arguments and arguments[0] in COMMANDS else [*COMMANDS]).parse_args(arguments)
    try:
        import_plugin_modules()
        return int(args.func(args))
    except (ValueError, LibraryLoadError, PluginImportError, FileNotFoundError, FileExistsError) as error:
        message = str(error)
    except ModuleNotFoundError as error:
        extra, missing = COMMANDS[args.command], (error.name or "attn_plugins").partition(".")[0]
        if missing == "attn_plugins" or (extra is None and missing not in SEPARATE):
            raise
        message = f"needs {error.name}: pip install {_remedy(missing, extra)}"
    print(f"attn-plugins {args.command}: {message}", file=sys.stderr)
    return 2


def _remedy(missing: str, extra: str | None) -> str:
    return missing if missing in SEPARATE else f"'attn_plugins[{extra}]'"
