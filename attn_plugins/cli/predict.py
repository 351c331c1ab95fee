"""``attn-plugins predict PROBE IMAGE…``: masks or depth of your images, as files and as pictures to look at."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "predict",
        help="predict with a trained probe: masks, depth or classes of any images",
        description="Writes OUT/NAME.png (mask, or depth in mm), NAME_overlay.png, NAME.json and legend.png.",
    )
    parser.add_argument("probe", type=Path, help="a probe's work dir, its checkpoint, or a bundle")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders, or - for a file a line of stdin")
    parser.add_argument("--checkpoint", type=Path, help="the backbone (default: found by its digest)")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder (default: %(default)s)")
    parser.add_argument("--no-overlay", action="store_true", help="write no pictures to look at")
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument(
        "--bundle", type=Path, metavar="FILE", help="write probe and backbone into one .safetensors file"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Predict every image; 1 where some of them could not be read."""
    from ..probes import load

    if not args.images and not args.bundle:
        raise ValueError("give images, folders, or - for a list on stdin; or --bundle FILE")
    predictor = load(args.probe, args.checkpoint, args.device)
    record = predictor.record
    tuned = ", fine-tuned" if record.tuned else ""
    print(f"{record.task}, {record.name}, spec {record.backbone['plugins']}{tuned}", file=sys.stderr)
    if args.bundle:
        from ..probes.bundle import write_bundle

        print(f"bundle: {write_bundle(args.bundle, predictor)}")
    if not args.images:
        return 0
    return _predict(args, predictor)


def _predict(args: argparse.Namespace, predictor: Any) -> int:
    from ..data.images import ImageError
    from ..files import write_text
    from ..probes.draw import legend, overlay, stored
    from ..probes.predict import describe

    failed, taken = 0, set[str]()
    args.out.mkdir(parents=True, exist_ok=True)
    key = legend(predictor.record)
    if key is not None and not args.no_overlay:
        _save(key, args.out / "legend.png")
    for path, name in _files(args.images):
        try:
            prediction = predictor.predict(path)
        except ImageError as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed += 1
            continue
        while name in taken:  # 1.jpg and 1.png, or two folders
            name += "_"
        taken.add(name)
        target = args.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = stored(prediction, predictor.record)
        if picture is not None:
            _save(picture, target.with_name(f"{target.name}.png"))
        if not args.no_overlay:
            _save(overlay(prediction, predictor.record), target.with_name(f"{target.name}_overlay.png"))
        told = {"image": str(path), **describe(prediction, predictor.record)}
        write_text(target.with_name(f"{target.name}.json"), json.dumps(told, indent=1) + "\n")
        print(json.dumps({"image": str(path), "out": str(target)}), flush=True)
    if failed:
        print(f"{failed} image(s) could not be read", file=sys.stderr)
    return 1 if failed else 0


def _save(picture: Any, path: Path) -> None:
    from ..files import written

    with written(path) as partial, partial.open("wb") as file:
        picture.save(file, "PNG")


def _files(given: list[str]) -> Iterator[tuple[Path, str]]:
    """(file, its name below the output folder); images of a folder keep their folders there.

    Raises:
        FileNotFoundError: neither a file nor a folder.
    """
    from ..data.own import find_images

    for text in given:
        if text == "-":
            for line in sys.stdin:
                if line.strip():
                    yield Path(line.strip()), Path(line.strip()).stem
            continue
        path = Path(text)
        if path.is_dir():
            for name, file in find_images(path).items():
                yield file, name
        elif path.exists():
            yield path, path.stem
        else:
            raise FileNotFoundError(f"{path} does not exist")
