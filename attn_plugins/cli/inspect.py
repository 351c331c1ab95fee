"""``attn-plugins inspect``: what is this checkpoint."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..checkpoints import CheckpointInfo, Shape

__all__ = ["add_parser"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="say what a checkpoint is",
        description="Print a checkpoint's architecture, patch size, registers, plugin spec and backbone keys. "
        "Nothing in the file is run.",
    )
    parser.add_argument("file", type=Path, help="a file, or a folder of timm, transformers or torch.distributed")
    parser.add_argument("--key", help="which backbone, where the file holds several (default: the teacher)")
    parser.add_argument("--keys", action="store_true", help="list the backbone's keys as well")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from ..checkpoints import identify, parent_of

    info = identify(args.file, args.key)
    rows = _rows(info)
    alphas = _annealed(args.file, args.key, info)
    if alphas:
        rows["alpha"] = alphas
    parent = parent_of(args.file)
    if parent is not None:
        digests = f"sha256 {parent.get('sha256')}, backbone {parent.get('digest')}"
        rows["made from"] = f"{parent.get('checkpoint')} ({digests})"
    for name, value in rows.items():
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
        "positions": _positions(shape),
        "registers": f"{shape.registers} of the model's own",
        "spec": f"{info.spec} (from {info.spec_source})" if info.spec else _not_recorded(info),
        "backbone": f"{len(info.keys)} tensors at {_place(info.section, info.prefix)}",
    }
    if len(set(info.layers.values())) > 1 or 0 < len(info.layers) < shape.depth:
        rows["layers"] = _by_spec(info)
    if info.arch:
        rows["built as"] = f"{info.arch} {dict(info.arch_options) or ''}".rstrip()
    if info.others:
        rows["also holds"] = ", ".join(_place(*other) for other in info.others)
    return rows


def _annealed(file: Path, key: str | None, info: CheckpointInfo) -> str:
    """Where alpha stood, of a run that moved it; "" of others."""
    if "entmax_anneal" not in (info.spec or ""):
        return ""
    from ..checkpoints import load_backbone_state
    from ..functional.anneal import stand

    state, _ = load_backbone_state(file, key=key)
    alphas, steps = stand(state)
    low, high = min(alphas), max(alphas)
    return f"{low:g}{f' to {high:g}' if high > low else ''} after {steps} steps" if alphas else "not told"


def _positions(shape: Shape) -> str:
    if shape.grid is not None:
        return f"{shape.grid} x {shape.grid} patches"
    return "rotary" if shape.positions is None else f"{shape.positions} tokens, no square grid of patches and [CLS]"


def _not_recorded(info: CheckpointInfo) -> str:
    """A file that says nothing says nothing, not softmax."""
    learned = info.plugin_keys
    return f"not recorded, but it holds parameters of plugins: {', '.join(learned[:3])}" if learned else "not recorded"


def _by_spec(info: CheckpointInfo) -> str:
    layers = defaultdict(list)
    for layer, spec in info.layers.items():
        layers[spec].append(layer)
    return "; ".join(f"{spec}: {', '.join(names)}" for spec, names in layers.items())


def _place(section: str, prefix: str) -> str:
    return f"[{section!r}] {prefix}*" if section else f"{prefix}*"
