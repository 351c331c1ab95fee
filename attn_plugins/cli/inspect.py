"""`attn-plugins inspect`: what is this checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..checkpoints import CheckpointInfo, identify

__all__ = ["add_parser"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="say what a checkpoint is",
        description="Print a checkpoint's architecture, patch size, registers, plugin spec and backbone keys. "
        "Nothing in the file is run.",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--key", help="which backbone, where the file holds several (default: the teacher)")
    parser.add_argument("--keys", action="store_true", help="list the backbone's keys as well")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    info = identify(args.file, args.key)
    for name, value in _rows(info).items():
        print(f"{name:13} {value}")
    if args.keys:
        for stored, plain in info.keys.items():
            print(f"  {stored}" if stored == plain else f"  {stored} = {plain}")
    return 0


def _rows(info: CheckpointInfo) -> dict[str, str]:
    shape = info.shape
    rows = {
        "file": str(info.path),
        "codebase": shape.codebase,
        "architecture": f"{shape.architecture} (embed_dim {shape.embed_dim}, depth {shape.depth}, ffn {shape.ffn})",
        "patch size": str(shape.patch_size),
        "positions": "rotary" if shape.grid is None else f"{shape.grid} x {shape.grid} patches",
        "registers": f"{shape.registers} of the model's own",
        "spec": f"{info.spec} (from {info.spec_source})" if info.spec else "none recorded (trained without plugins)",
        "backbone": f"{len(info.keys)} tensors at {_place(info.section, info.prefix)}",
    }
    if info.others:
        rows["also holds"] = ", ".join(_place(*other) for other in info.others)
    return rows


def _place(section: str, prefix: str) -> str:
    return f"[{section!r}] {prefix}*" if section else f"{prefix}*"
