"""The modules that register a user's own plugins: ``--import MODULE``, and ``VARIABLE`` for every process.

Only the user's command line and environment name them, never a file.
"""

from __future__ import annotations

import argparse
import importlib
import os
from typing import Any

from .errors import PluginImportError

__all__ = ["VARIABLE", "ImportPlugins", "import_plugin_modules", "imported_names"]

VARIABLE = "ATTN_PLUGINS_IMPORT"
"""Environment variable: names of modules, comma separated. Subprocesses and data loaders' workers inherit it."""


def import_plugin_modules() -> None:
    """Import the modules that the environment names; those that are imported already stay as they are.

    Raises:
        PluginImportError: one of them cannot be found, or fails while it is imported.
    """
    for name in imported_names():
        try:
            importlib.import_module(name)
        except Exception as error:
            raise PluginImportError(
                f"the plugin module {name!r}, named by --import or {VARIABLE}, does not import: "
                f"{type(error).__name__}: {error}. It must be installed, or lie in a folder of PYTHONPATH"
            ) from error


class ImportPlugins(argparse.Action):
    """``--import MODULE``: import it in this process, when a plugin is first looked up, and in those it starts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        os.environ[VARIABLE] = ",".join(dict.fromkeys([*imported_names(), values]))

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--import",
            action=cls,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            metavar="MODULE",
            help=f"module that registers plugins of yours; may be repeated, and {VARIABLE} does the same",
        )


def imported_names() -> list[str]:
    """The modules that the environment names."""
    return [name for part in os.environ.get(VARIABLE, "").split(",") if (name := part.strip())]
