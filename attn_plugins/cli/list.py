"""``attn-plugins list``: the registered normalizers, mechanisms and adapters."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from ..registry import ADAPTERS, MECHANISMS, NORMALIZERS

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("list", help="what can be named in a spec string")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    import attn_plugins  # noqa: F401  registers the built-ins

    print("normalizers")
    for name in NORMALIZERS:
        _line(name, NORMALIZERS.get(name).factory)
    print("mechanisms")
    for name in MECHANISMS:
        _line(name, MECHANISMS.get(name))
    print("adapters")
    for name in ADAPTERS:
        print(f"  {name}")
    return 0


def _line(name: str, factory: Any) -> None:
    parameters = [
        f"{p.name}={'VALUE' if p.default in (None, p.empty) else str(p.default).lower()}"
        for p in inspect.signature(factory).parameters.values()
        if p.name not in ("self", "scores", "dim", "num_heads")
    ]
    summary = (inspect.getdoc(factory) or "").partition("\n")[0]
    print(f"  {name + (':' + ','.join(parameters) if parameters else ''):44} {summary}")
