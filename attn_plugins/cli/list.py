"""``attn-plugins list``: the registered normalizers, mechanisms, adapters and backends, these as they are asked."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from ..params import SCALE, SCALES, parameters
from ..registry import ADAPTERS, MECHANISMS, NORMALIZERS
from ..text import columns

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("list", help="what can be named in a spec string")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from ..attention.backend import BACKENDS

    normalizers = [_line(name, NORMALIZERS.get(name).factory, normalizer=True) for name in NORMALIZERS]
    mechanisms = [_line(name, MECHANISMS.get(name), normalizer=False) for name in MECHANISMS]
    lines = columns([*normalizers, *mechanisms])
    print("normalizers", *lines[: len(normalizers)], sep="\n  ")
    print(f"  each also takes {SCALE}=NUMBER or one of {', '.join(SCALES)}: a factor on its scores")
    print("mechanisms", *lines[len(normalizers) :], sep="\n  ")
    print("adapters", *ADAPTERS, sep="\n  ")
    print("backends", *reversed([backend.name for backend in BACKENDS.values()]), sep="\n  ")
    return 0


def _line(name: str, factory: Any, *, normalizer: bool) -> tuple[str, str]:
    known = parameters(factory, normalizer=normalizer)
    shown = [
        f"{p.name}={'VALUE' if p.default in (None, p.empty) else str(p.default).lower()}"
        for p in (known or {}).values()
    ]
    if known is None:
        shown = ["..."]
    summary = (inspect.getdoc(factory) or "").partition("\n")[0]
    return name + (":" + ",".join(shown) if shown else ""), summary
