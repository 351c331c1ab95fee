"""``attn-plugins bench attention | step | methods | monitor | probes``: how fast it is here, beside its peers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = subparsers.add_parser("bench", help="time attention, or a whole training step, beside its peers")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="attention | step | methods | monitor | probes")
    attention = kinds.add_parser("attention", help="forward and backward of one attention call")
    attention.add_argument("--shape", type=int, nargs=4, metavar=("B", "H", "N", "D"), help="default: 16 6 197 64")
    step = kinds.add_parser("step", help="forward, backward and AdamW of a timm model (needs timm)")
    methods = kinds.add_parser("methods", help="that step with the four methods of Table 1 (needs timm)")
    monitor = kinds.add_parser("monitor", help="that step looked at by a Monitor, and as it is (needs timm)")
    for kind in (step, methods, monitor):
        kind.add_argument("--arch", default="vit_small_patch16_224", help="timm model name (default: %(default)s)")
        kind.add_argument("--batch", type=int, help="images per step (default: 16)")
    for kind in (attention, step):
        kind.add_argument("--specs", nargs="+", metavar="SPEC", help="spec strings to time (default: entmax15, ...)")
    probes = kinds.add_parser("probes", help="a probe's step beside one with a trainable backbone (needs mmseg)")
    probes.add_argument("--arch", default="timm/vit_small_patch16_224", help="as probes name it (default: %(default)s)")
    probes.add_argument("--probe", default="voc2012", help="config with the head to time (default: %(default)s)")
    probes.add_argument("--size", type=int, help="pixels of a side (default: 512)")
    probes.add_argument("--batch", type=int, help="images per step (default: 2)")
    for kind in (attention, step, methods, monitor, probes):
        kind.add_argument("--device", default="cpu", help="default: %(default)s")
        kind.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
        kind.add_argument("--repeats", type=int, help="samples of each peer")
        kind.add_argument("--quick", action="store_true", help="small and few: to see that it runs, not how fast")
        kind.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
        kind.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON."""
    import torch

    from ..bench.monitor import monitor_table
    from ..bench.probes import bench_probes, probes_table
    from ..bench.report import table, write_json

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.kind == "attention" and args.device.startswith("cuda"):
        return _run_cuda(args)
    options: dict[str, Any] = {"device": args.device}
    if args.repeats or args.quick:
        options["repeats"] = args.repeats or 2
    if args.kind == "attention":
        from ..bench.attention import bench_attention

        if args.shape or args.quick:
            options["shape"] = tuple(args.shape or (1, 2, 50, 16))
        if args.specs:
            options["normalizers"] = args.specs
        result = bench_attention(**options)
    elif args.kind == "probes":
        small = {"size": 64, "batch": 1} if args.quick else {}
        options |= small | {name: getattr(args, name) for name in ("size", "batch") if getattr(args, name)}
        result = bench_probes(args.arch, args.probe, **options)
    elif args.kind == "methods":
        from ..bench.methods import bench_methods

        if args.batch or args.quick:
            options["batch"] = args.batch or 1
        result = bench_methods(args.arch, **options)
    elif args.kind == "monitor":
        from ..bench.monitor import bench_monitor

        if args.batch or args.quick:
            options["batch"] = args.batch or 1
        result = bench_monitor(args.arch, **options)
    else:
        from ..bench.step import bench_step

        if args.batch or args.quick:
            options["batch"] = args.batch or 1
        if args.specs:
            options["specs"] = args.specs
        result = bench_step(args.arch, **options)
    shown = {"probes": probes_table, "monitor": monitor_table}.get(args.kind, table)
    print(shown(result))
    if args.json:
        write_json(result, args.json)
    return 0


def _run_cuda(args: argparse.Namespace) -> int:
    """The fused kernels beside every GPU peer."""
    from ..bench.cuda import bench_cuda, cuda_table
    from ..bench.report import write_json
    from ..bench.roofline import Shape

    options: dict[str, Any] = {"device": args.device, "steps": not args.quick}
    if args.repeats or args.quick:
        options["repeats"] = args.repeats or 2
    if args.shape or args.quick:
        batch, heads, tokens, dim = args.shape or (2, 2, 50, 64)
        options["shapes"] = [Shape(f"N {tokens}", batch, heads, (tokens,), dim)]
    result = bench_cuda(**options)
    print(cuda_table(result))
    if args.json:
        write_json(result, args.json)
    return 0
