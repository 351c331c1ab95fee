"""``attn-plugins probe NAME --checkpoint F --data-root D``: train or test a linear probe with mim."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

from ..files import sha256

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("probe", help="train or test a linear probe of a frozen backbone")
    parser.add_argument(
        "probe",
        help="voc2012, ade20k, cityscapes, nyuv2, kitti, sunrgbd, sunrgbd_linear4_depth_train, imagenet, or a config",
    )
    parser.add_argument("--checkpoint", required=True, help="the backbone")
    parser.add_argument("--data-root", required=True, help="the data set; see mmseg_configs/README.md")
    parser.add_argument("--train-data-root", help="another one for training: NYUv2, for sunrgbd's transfer")
    parser.add_argument("--arch", help="where the checkpoint does not tell: timm/NAME, transformers/FOLDER, …")
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/PROBE/NAME-DIGEST of the checkpoint")
    parser.add_argument("--gpus", type=int, default=1, help="more than one starts as many processes")
    parser.add_argument("--workers", type=int, help="data loading processes of each process")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the work dir")
    parser.add_argument("--test", metavar="HEAD", help="test this probe checkpoint instead of training")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="as mim takes them")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from ..probes.command import data_options, mim_command
    from ..probes.paths import config_file

    config = config_file(args.probe)
    for path in (args.checkpoint, args.data_root, *filter(None, (args.test, args.train_data_root))):
        if not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist")
    if config.stem == "sunrgbd_linear4_depth" and not args.test and not args.train_data_root:
        raise ValueError(
            "the SUN RGB-D column is the NYUv2 probe transferred: give --test NYUV2_HEAD.pth to test a finished one, "
            "or --train-data-root NYUV2 to train it (or probe sunrgbd_linear4_depth_train)"
        )
    options: dict[str, Any] = data_options(args.data_root, args.train_data_root, args.workers)
    options["model.backbone.checkpoint"] = args.checkpoint
    if args.arch:
        options["model.backbone.arch"] = args.arch
    for option in args.cfg_options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--cfg-options {option!r} is not KEY=VALUE")
        options[key] = value
    work_dir = args.work_dir or Path("work_dirs") / config.stem / _name(Path(args.checkpoint))
    action = ["--checkpoint", args.test] if args.test else ["--resume"] if args.resume else []
    if args.gpus > 1:
        action += ["--launcher", "pytorch", "--gpus", str(args.gpus)]
    command = mim_command("test" if args.test else "train", str(config), options, *action, work_dir=work_dir)
    return subprocess.run(command, env=os.environ, check=False).returncode


def _name(checkpoint: Path) -> str:
    """`checkpoint-1f0c94ab`: name and contents of a file, or of a folder's files; every DINO run has the same name."""
    digest = hashlib.sha256()
    for file in sorted(checkpoint.rglob("*")) if checkpoint.is_dir() else [checkpoint]:
        if file.is_file():
            digest.update(bytes.fromhex(sha256(file)))
    return f"{checkpoint.resolve().stem}-{digest.hexdigest()[:8]}"
