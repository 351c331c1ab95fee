"""``attn-plugins list``: the registered normalizers, mechanisms and adapters."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from ..registry import ADAPTERS, MECHANISMS, NORMALIZERS
from ..text import columns

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("list", help="what can be named in a spec string")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    import attn_plugins  # noqa: F401  registers the built-ins

    normalizers = [_line(name, NORMALIZERS.get(name).factory) for name in NORMALIZERS]
    mechanisms = [_line(name, MECHANISMS.get(name)) for name in MECHANISMS]
    lines = columns([*normalizers, *mechanisms])
    print("normalizers", *lines[: len(normalizers)], sep="\n  ")
    print("mechanisms", *lines[len(normalizers) :], sep="\n  ")
    print("adapters", *ADAPTERS, sep="\n  ")
    return 0


def _line(name: str, factory: Any) -> tuple[str, str]:
    parameters = [
        f"{p.name}={'VALUE' if p.default in (None, p.empty) else str(p.default).lower()}"
        for p in inspect.signature(factory).parameters.values()
        if p.name not in ("self", "scores", "dim", "num_heads")
    ]
    summary = (inspect.getdoc(factory) or "").partition("\n")[0]
    return name + (":" + ",".join(parameters) if parameters else ""), summary
