"""``attn-plugins analyze KIND CHECKPOINT… --data D``: one of the paper's analyses, as PNG, SVG and CSV."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "add_subject_options", "add_view_options", "find_data", "run"]

NORMS, HITS, PRESETS = ("none", "final", "own"), ("centre", "overlap"), ("last-vit",)
"""What ``analysis`` knows, without importing it."""
KINDS = {
    "pib": "share of images whose patch most like [CLS] lies on the object, per layer (Figure 2a)",
    "pca": "principal components of patch features as colours (Figure 1)",
    "diffusion": "how alike an image's tokens are, and whether what is like [CLS] lies on the object, per layer",
    "discovery": "LOST CorLoc on boxes, attention Jaccard, k-NN and k-means mIoU of patches on masks",
    "drift": "how far each model's features are from the first's, per layer (cosine, CKA)",
    "attention": "entropy, exact zeros, support and [CLS] mass per layer and head; overlays",
    "maps": "norm maps, what outliers attend to, similar patches; attention sinks and distances per layer",
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


def add_subject_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Which models, on which images; a report of probes alone needs neither."""
    parser.add_argument(
        "checkpoints",
        nargs="+" if required else "*",
        metavar="FILE[=SPEC]",
        help="one or more; what they are is read from the files, and FILE=SPEC shows one under another spec",
    )
    parser.add_argument(
        "--data", type=Path, required=required, help="image folder, or root of VOC, ImageNet, ADE20K, ..."
    )
    parser.add_argument("--split", default="val", help="of the data set (default: %(default)s)")
    parser.add_argument("--boxed", type=Path, help="other images, with boxes, for what needs them (default: --data)")
    parser.add_argument("--masks", type=Path, help="class masks: a folder of PNG files named like the images")
    parser.add_argument("--masked", type=Path, help="other images, with those masks, for what needs them")
    parser.add_argument("--annotations", type=Path, help="boxes: COCO JSON, or a folder of VOC or ImageNet XML")
    parser.add_argument("--arch", default="auto", help="where a checkpoint does not tell: timm/NAME, dinov2/NAME, ...")
    parser.add_argument("--plugins", default="auto", help="spec, where a checkpoint does not tell (default: its own)")
    parser.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """What is looked at; the defaults are those of ``analysis.findings.Settings``."""
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: 224)")
    parser.add_argument("--resize", type=int, help="shorter side before the centre is cut out (default: --size)")
    parser.add_argument("--preset", choices=PRESETS, help="point-in-box as in LaSt-ViT; other options override it")
    parser.add_argument("--norm", choices=NORMS, help="before cosines with [CLS] (default: final, on every layer)")
    parser.add_argument("--hit", choices=HITS, help="which patches lie in a box (default: centre)")
    parser.add_argument("--single", action="store_true", default=None, help="only images with exactly one object")
    parser.add_argument("--below", type=float, help="only images whose objects cover less than this share of them")
    parser.add_argument("--difficult", action="store_true", default=None, help="count VOC's difficult objects too")
    parser.add_argument("--background", type=int, nargs="*", help="classes of masks that are no object (default: 0)")
    parser.add_argument("--ignored", type=int, nargs="*", help="classes of masks that do not count (default: 255)")
    parser.add_argument("--norm-threshold", type=float, help="absolute norm of outliers (default: 150, Darcet et al.)")
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
    """The settings that were given, those of the preset, the rest by default."""
    from dataclasses import fields

    from ..analysis.findings import PRESETS as presets
    from ..analysis.findings import Settings

    given = {field.name: getattr(args, field.name, None) for field in fields(Settings)}
    chosen = dict(presets[args.preset]) if args.preset else {}
    chosen |= {name: value for name, value in given.items() if value is not None}
    if args.limit == "all":
        chosen["limit"] = None
    return Settings(**chosen)


def find_data(args: argparse.Namespace) -> Any:
    """The images, and those with boxes and masks if they are others."""
    from ..analysis.images import Sources, find_images

    masks = args.masks if args.masked is None else None
    images = find_images(args.data, args.split, args.annotations if args.boxed is None else None, masks)
    every = Sources.of(images)
    boxed = every.boxed if args.boxed is None else find_images(args.boxed, args.split, args.annotations)
    if args.masked is None:
        return Sources(images, boxed, every.masked)
    if args.masks is None:
        raise ValueError(f"--masked {args.masked} are images with masks: name the folder of these with --masks")
    return Sources(images, boxed, find_images(args.masked, args.split, None, args.masks))


def run(args: argparse.Namespace) -> int:
    """Write the figures and say where they are."""
    for exhibit in _exhibits(args):
        files = exhibit.write(args.out)
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
    from ..analysis.report import draw, examine_all, verdict_of
    from ..analysis.subjects import from_checkpoints

    looked_at = settings(args)
    sources = find_data(args)
    subjects = from_checkpoints(args.checkpoints, args.arch, args.plugins, args.repo)
    found = examine_all(subjects, sources, looked_at, [args.kind])
    for one in found:
        print(f"{one.subject.name}: {verdict_of(one)}")
    return draw(found, sources, looked_at)
