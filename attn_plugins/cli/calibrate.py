"""``attn-plugins calibrate``: a pretrained softmax checkpoint becomes sparse, without training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "calibrate",
        help="fit a factor on the scores of every head, so that a softmax backbone keeps its features",
        description="Under another normalizer a pretrained backbone is another model. This fits one factor for every "
        "head on a few dozen images, so that the head's output is nearest to softmax's, and measures what is left of "
        "the features on others. Nothing is trained.",
    )
    parser.add_argument("checkpoint", type=Path, help="a file or folder, as `attn-plugins inspect` reads")
    parser.add_argument("--data", type=Path, required=True, help="image folder, or root of VOC, ImageNet, ADE20K, ...")
    parser.add_argument("--split", default="val", help="of the data set (default: %(default)s)")
    parser.add_argument("--plugins", default="entmax15", help="spec to calibrate for (default: %(default)s)")
    parser.add_argument("--sparsity", type=float, help="share of weights that shall be zero (default: as it comes)")
    parser.add_argument("--out", type=Path, help="checkpoint to write, in the format of the one given")
    parser.add_argument("--scales-out", type=Path, help="factors alone, as JSON, for patch(model, spec, scales=FILE)")
    parser.add_argument("--figure", type=Path, help="draw the trade-off of zeros and likeness (.png, .svg, .pdf)")
    parser.add_argument("--images", type=int, default=24, help="half to fit on, half to measure on (default: 24)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[224, 448], help="sides in pixels; zeros are counted at the first"
    )
    parser.add_argument("--seed", type=int, default=0, help="which images are drawn (default: 0)")
    parser.add_argument("--arch", default="auto", help="where a checkpoint does not tell: timm/NAME, dinov2/NAME, ...")
    parser.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Fit, print the table, and write what was asked for."""
    import torch

    from ..adapt.calibrate import calibrate
    from ..analysis.images import find_images
    from ..checkpoints import Keeping, build
    from ..files import require_plain
    from ..progress import printed_progress

    outputs = [path for path in (args.out, args.scales_out, args.figure) if path is not None]
    if not outputs:
        raise ValueError("nothing to write: give --out FILE, --scales-out FILE or --figure FILE")
    for path in outputs:
        require_plain(path)
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    images = find_images(args.data, args.split).sample(args.images, args.seed)
    if args.images < 2 or len(images) < 2:
        raise ValueError(f"{len(images)} images, of which half are measured on: give --images 2 or more, and as many")
    model, told = build(args.arch, args.checkpoint, "softmax", args.repo)
    keeping = None if args.out is None else Keeping.of(args.out, model, args.checkpoint, told)
    batches = [torch.cat([batch.pixels for batch in images.batches(size)]) for size in args.sizes]
    found = calibrate(
        model,
        [batch[::2] for batch in batches],
        args.plugins,
        args.sparsity,
        held_out=[batch[1::2] for batch in batches],
        curve=args.figure is not None,
        progress=printed_progress("calibrate"),
    )
    print(found)
    if args.scales_out is not None:
        found.scales.write(args.scales_out)
    if keeping is not None:
        keeping.write(model)
    if args.figure is not None:
        from ..adapt.figure import draw

        draw(found, args.figure)
    print("wrote " + ", ".join(map(str, outputs)))
    return 0
