"""``attn-plugins bench attention | qkv | step | methods | monitor | probes``: how fast it is here, beside its peers."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run", "run_qkv"]

ISAS = {
    "avx2": {
        "ATTN_PLUGINS_MARCH": "haswell",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
"""What holds our kernels, torch, oneDNN and MKL to an instruction set; all of them ask once, when they start."""


def add_parser(subparsers: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = subparsers.add_parser("bench", help="time attention, or a whole training step, beside its peers")
    kinds = parser.add_subparsers(
        dest="kind", required=True, metavar="attention | qkv | step | methods | monitor | probes"
    )
    attention = kinds.add_parser("attention", help="forward and backward of one attention call")
    attention.add_argument("--shape", type=int, nargs=4, metavar=("B", "H", "N", "D"), help="default: 16 6 197 64")
    attention.add_argument("--grid", action="store_true", help="many lengths, sizes, kinds and dtypes, as ratios")
    attention.add_argument(
        "--tokens", type=int, nargs="+", metavar="N", help="lengths of the grid (default: 37 ... 2305)"
    )
    attention.add_argument("--qkv", type=Path, metavar="FILE", help="real ones, of `bench qkv`")
    attention.add_argument(
        "--cpu-time", action="store_true", help="count processor time, for a busy machine (1 thread)"
    )
    attention.add_argument("--memory", action="store_true", help="also the most memory that each peer takes")
    attention.add_argument("--isa", choices=sorted(ISAS), help="as a processor without wider registers computes")
    qkv = kinds.add_parser("qkv", help="write the queries, keys and values of a checkpoint on pictures")
    qkv.add_argument("checkpoint", help="a file or folder, as `attn-plugins inspect` reads")
    qkv.add_argument("--data", type=Path, required=True, help="image folder, or root of VOC, ImageNet, ADE20K, ...")
    qkv.add_argument("--layers", type=int, nargs="+", default=[1, 6, 11], help="from 0 (default: 1 6 11)")
    qkv.add_argument("--size", type=int, default=224, help="pixels of a side (default: %(default)s)")
    qkv.add_argument("--images", type=int, default=16, help="how many (default: %(default)s)")
    qkv.add_argument("--arch", default="auto", help="where a checkpoint does not tell: timm/NAME, dinov2/NAME, ...")
    qkv.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")
    qkv.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    qkv.set_defaults(func=run_qkv)
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

    from ..bench.attention import attention_table
    from ..bench.monitor import monitor_table
    from ..bench.probes import bench_probes, probes_table
    from ..bench.report import table, write_json

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.kind == "attention" and args.isa and any(os.environ.get(k) != v for k, v in ISAS[args.isa].items()):
        return _again(args)
    if args.kind == "attention" and args.memory and (args.grid or args.qkv or args.device != "cpu"):
        raise ValueError("--memory counts what one shape takes on the CPU: leave out --grid, --qkv and --device")
    if args.kind == "attention" and (args.grid or args.qkv):
        return _run_grid(args)
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
        result = bench_attention(memory=args.memory, **options)
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
    shown = {"attention": attention_table, "probes": probes_table, "monitor": monitor_table}.get(args.kind, table)
    print(shown(result))
    if args.json:
        write_json(result, args.json)
    return 0


def _again(args: argparse.Namespace) -> int:
    """The same command in a process whose libraries are told at their start."""
    command = [sys.executable, "-m", "attn_plugins", "bench", "attention", "--isa", args.isa]
    for name in ("shape", "specs", "tokens", "qkv", "device", "threads", "repeats", "json"):
        value = getattr(args, name)
        if value is not None:
            command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    command += [
        f"--{name.replace('_', '-')}" for name in ("grid", "quick", "cpu_time", "memory") if getattr(args, name)
    ]
    return subprocess.run(command, env={**os.environ, **ISAS[args.isa]}).returncode


def _run_grid(args: argparse.Namespace) -> int:
    """Many cases, or those of a file, as ratios."""
    import torch

    from ..bench.report import write_json
    from ..bench.shapes import TOKENS, bench_shapes, cases, cpu_clock, read_qkv, shapes_table
    from ..bench.timing import wall_clock
    from ..progress import printed_progress

    if args.device != "cpu":
        raise ValueError(f"--grid and --qkv compare on the CPU; on {args.device}, leave them out")
    if args.cpu_time and torch.get_num_threads() != 1:
        raise ValueError("--cpu-time counts one thread's time: give --threads 1")
    if args.qkv:
        compared = read_qkv(args.qkv, args.specs or ["entmax15"])
    else:
        compared = cases(args.tokens or ((37,) if args.quick else TOKENS))
    result = bench_shapes(
        compared,
        args.repeats or (2 if args.quick else 10),
        cpu_clock if args.cpu_time else wall_clock,
        printed_progress("bench"),
    )
    print(shapes_table(result))
    if args.json:
        write_json(result, args.json)
    return 0


def run_qkv(args: argparse.Namespace) -> int:
    """Build the backbone, let it look, write what its attention was given."""
    import torch

    from ..analysis.images import find_images
    from ..bench.qkv import capture, write_qkv
    from ..checkpoints import build
    from ..files import require_plain

    require_plain(args.out)
    images = find_images(args.data).sample(args.images, seed=0)
    model, told = build(args.arch, args.checkpoint, "softmax", args.repo)
    pixels = torch.cat([batch.pixels for batch in images.batches(args.size)])
    layers = capture(model, pixels, args.layers)
    write_qkv(args.out, layers, arch=str(told["arch"]), sha256=str(told["sha256"]), size=str(args.size))
    for name, (query, *_) in layers.items():
        print(f"{name}: {tuple(query.shape)}")
    print(f"wrote {args.out}")
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
