"""``attn-plugins env``: what a bug report should say about the machine."""

from __future__ import annotations

import argparse
import platform
from typing import Any

from ..machine import machine, versions
from ..text import columns

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("env", help="versions and machine, for a bug report")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    import torch

    from .. import native

    rows = list(versions().items())
    rows.append(("system", platform.platform()))
    for device in ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))):
        told = machine(device)
        rows.append((device, told["name"] + (f", {told['threads']} threads" if told["threads"] else "")))
    rows.append(("CPU kernels", native.unavailable() or "built"))
    print("\n".join(columns(rows)))
    return 0
