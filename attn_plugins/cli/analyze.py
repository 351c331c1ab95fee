"""``attn-plugins analyze KIND CHECKPOINT… --data D``: one of the paper's analyses, as PNG, SVG and CSV."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "add_subject_options", "add_view_options", "run"]

KINDS = {
    "pib": "share of images whose patch most like [CLS] lies on the object, per layer (Figure 2a)",
    "pca": "principal components of patch features as colours (Figure 1)",
    "attention": "entropy, exact zeros, support and [CLS] mass per layer and head; overlays",
    "norms": "norms of patch tokens and outliers per layer",
    "layers": "mIoU of probes of single layers, from their work dirs (Figure 2b)",
    "monitor": "exact zeros, entropy, support, [CLS] mass and alpha over a training run, from a Monitor's RUN.jsonl",
}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("analyze", help="point-in-box, PCA, attention density, token norms, layers")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar=" | ".join(KINDS))
    for kind, summary in KINDS.items():
        one = kinds.add_parser(kind, help=summary, description=summary)
        if kind == "layers":
            one.add_argument("work_dirs", nargs="+", type=Path, help="searched for probe.json files")
        elif kind == "monitor":
            one.add_argument("run", type=Path, metavar="RUN.jsonl", help="what attn_plugins.Monitor wrote")
        else:
            add_subject_options(one)
            add_view_options(one)
        one.add_argument("--out", type=Path, default=Path("analysis"), help="folder (default: %(default)s)")
        one.set_defaults(func=run)


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """Which models, on which images."""
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="FILE[=SPEC]",
        help="one or more; what they are is read from the files, and FILE=SPEC shows one under another spec",
    )
    parser.add_argument("--data", type=Path, required=True, help="image folder, or root of VOC, ImageNet, ADE20K, ...")
    parser.add_argument("--split", default="val", help="of the data set (default: %(default)s)")
    parser.add_argument("--annotations", type=Path, help="boxes: COCO JSON, or a folder of VOC or ImageNet XML")
    parser.add_argument("--arch", default="auto", help="where a checkpoint does not tell: timm/NAME, dinov2/NAME, ...")
    parser.add_argument("--plugins", default="auto", help="spec, where a checkpoint does not tell (default: its own)")
    parser.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """What is looked at; the defaults are those of ``analysis.findings.Settings``."""
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: 224)")
    parser.add_argument("--batch", type=int, help="images a forward (default: 32)")
    parser.add_argument(
        "--limit", type=_limit, help="images that statistics are over, a number or 'all' (default: 200)"
    )
    parser.add_argument("--pictures", type=int, help="images shown by PCA and overlays (default: 4)")
    parser.add_argument("--layer", type=int, help="layer of the overlays, negative from the end (default: -1)")
    parser.add_argument("--heads", type=int, nargs="+", help="heads of the overlays (default: the first four)")
    parser.add_argument("--basis", choices=("shared", "image"), help="of the PCA (default: shared)")
    parser.add_argument("--foreground", type=float, help="PCA of what lies above this threshold, 0 to 1 (default: all)")
    parser.add_argument("--device", help="cpu or cuda (default: cpu)")
    parser.add_argument("--seed", type=int, help="which images are drawn (default: 0)")


def _limit(text: str) -> int | str:
    try:
        return text if text == "all" else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'all'") from error


def settings(args: argparse.Namespace) -> Any:
    """The settings that were given, the rest by default."""
    from dataclasses import fields

    from ..analysis.findings import Settings

    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    chosen = {name: value for name, value in given.items() if value is not None}
    if args.limit == "all":
        chosen["limit"] = None
    return Settings(**chosen)


def run(args: argparse.Namespace) -> int:
    """Write the figures and say where they are."""
    from ..files import write_bytes

    for exhibit in _exhibits(args):
        files = exhibit.write(args.out)
        files.append(args.out / f"{exhibit.name}.svg")
        write_bytes(files[-1], exhibit.render("svg"))
        print(exhibit.alt)
        print("  " + ", ".join(map(str, files)))
    return 0


def _exhibits(args: argparse.Namespace) -> Any:
    if args.kind == "layers":
        from ..analysis.figures import layers_exhibit
        from ..analysis.layers import collect_layers

        return [layers_exhibit(collect_layers(args.work_dirs))]
    if args.kind == "monitor":
        from ..analysis.monitor import run_exhibit

        return [run_exhibit(args.run)]
    from ..analysis.images import find_images
    from ..analysis.report import draw, examine_all, verdict_of
    from ..analysis.subjects import from_checkpoints

    looked_at = settings(args)
    images = find_images(args.data, args.split, args.annotations)
    subjects = from_checkpoints(args.checkpoints, args.arch, args.plugins, args.repo)
    found = examine_all(subjects, images, looked_at, [args.kind])
    for one in found:
        print(f"{one.subject.name}: {verdict_of(one)}")
    return draw(found, images, looked_at, [args.kind])
