"""``attn-plugins probe NAME --checkpoint F --data-root D``: train or test a linear probe with mim.

``attn-plugins probe folder --images DIR --masks DIR --checkpoint F`` needs neither a data set's layout nor a config.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

from ..files import sha256
from .heads import add_sweep_options, is_sweep, require_sweepable, run_sweep

__all__ = ["add_parser", "run"]

QUICK = 50
"""Iterations of ``--quick``."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "probe",
        help="train or test a linear probe of a frozen backbone",
        description="Train a linear probe on a data set that has a config, or on your own pictures: "
        "attn-plugins probe folder --images DIR --masks DIR --checkpoint FILE",
    )
    add_options(parser)
    parser.add_argument("--checkpoint", help="the backbone")
    parser.add_argument("--plugins", help="the spec, where the checkpoint does not tell")
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/PROBE/NAME-DIGEST of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the work dir")
    parser.add_argument("--test", metavar="HEAD", help="test this probe checkpoint instead of training")
    add_sweep_options(parser.add_argument_group("several heads of the fast probe"))
    group = parser.add_argument_group("before `probe folder` trains")
    group.add_argument("--config-out", type=Path, metavar="FILE", help="write the config here, too")
    group.add_argument("--check", action="store_true", help="check the pictures and write the config; train nothing")
    parser.set_defaults(func=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which probe, on what data, how: what one probe and a sweep over several have in common."""
    parser.add_argument(
        "probe",
        help="voc2012, ade20k, cityscapes, nyuv2, kitti, sunrgbd, sunrgbd_linear4_depth_train, imagenet, a config; or "
        "folder, for your own pictures",
    )
    parser.add_argument("--data-root", help="the data set; see mmseg_configs/README.md")
    parser.add_argument("--train-data-root", help="another one for training: NYUv2, for sunrgbd's transfer")
    parser.add_argument("--arch", help="where the checkpoint does not tell: timm/NAME, transformers/FOLDER, …")
    parser.add_argument("--gpus", type=int, default=1, help="more than one starts as many processes")
    parser.add_argument("--workers", type=int, help="data loading processes of each process")
    parser.add_argument("--amp", nargs="?", const="bf16", choices=("bf16", "fp16"), help="the backbone in bf16 (fp16)")
    parser.add_argument("--seed", type=int, help="of weights, order and augmentation (default 0)")
    parser.add_argument("--iterations", type=int, help="optimizer steps; warm-up and decay keep their share")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} iterations: does everything work? no result")
    fast = parser.add_argument_group("the fast probe; not the published protocol, and its result says so")
    fast.add_argument("--fast", action="store_true", help="compute features once, train on them in seconds")
    fast.add_argument(
        "--views",
        type=int,
        default=1,
        help="fixed views of each training image (default 1, at most 6; 2 of depth and classes)",
    )
    fast.add_argument("--store", type=Path, default=Path("work_dirs/features"), help="keeps features (%(default)s)")
    tune = parser.add_argument_group("the backbone trained too; not the published protocol, and its result says so")
    tune.add_argument("--finetune", action="store_true", help="train the backbone with the head; its spec is kept")
    tune.add_argument("--layer-decay", type=float, help="learning rate of a layer to that of the next (default 0.65)")
    tune.add_argument("--drop-path", type=float, help="rate of stochastic depth, where the codebase has it (default 0)")
    _add_folder_options(parser.add_argument_group("your own pictures, with `probe folder`"))
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="as mim takes them")


def _add_folder_options(group: Any) -> None:
    group.add_argument("--images", type=Path, help="a folder of images; alone, with a folder below it for each class")
    group.add_argument("--masks", type=Path, help="a folder of masks of the same names: grey, palette or RGB")
    group.add_argument("--depth", type=Path, help="a folder of depth maps of the same names: PNG of 16 bits, 0 is none")
    group.add_argument("--depth-scale", type=float, help="stored units per metre: 1000 for millimetres")
    group.add_argument("--max-depth", type=float, help="metres (default: the largest that is measured)")
    group.add_argument("--classes", type=Path, metavar="FILE", help="a class a line: NAME, VALUE NAME or R G B NAME")
    group.add_argument("--void", nargs="+", metavar="VALUE", help="values that are no class: 11, 128,0,0; or none")
    group.add_argument("--train-list", type=Path, metavar="FILE", help="names of the images to train on, one a line")
    group.add_argument("--val-list", type=Path, metavar="FILE", help="names of the images to validate on")
    group.add_argument(
        "--val-share", type=float, default=0.2, help="validated on where nothing else tells (%(default)s)"
    )
    group.add_argument("--skip-bad", action="store_true", help="leave out pictures with problems instead of stopping")
    group.add_argument("--size", type=int, help="shortest side and crop in pixels (default 512; --fast: not enlarged)")
    group.add_argument("--name", help="of the data, for the table (default: the images' folder)")


def run(args: argparse.Namespace) -> int:
    if not args.checkpoint:
        raise ValueError("--checkpoint is missing: the file of the backbone to probe")
    if not Path(args.checkpoint).exists():
        raise FileNotFoundError(f"{args.checkpoint} does not exist")
    if args.probe == "folder":
        from .own import run_folder

        return run_folder(args)
    return _run_named(args)


def _run_named(args: argparse.Namespace) -> int:
    from ..probes.run.command import data_options, iteration_options, mim_command
    from ..probes.run.folder import write_config
    from ..probes.run.paths import config_file

    config = config_file(args.probe)
    given = [
        name for name in ("images", "masks", "depth", "classes", "void", "size") if getattr(args, name) is not None
    ]
    if given:
        raise ValueError(f"--{given[0]} is for your own pictures: attn-plugins probe folder --images DIR …")
    if not args.data_root:
        raise ValueError("--data-root is missing: the folder of the data set; see mmseg_configs/README.md")
    for path in (args.data_root, *filter(None, (args.test, args.train_data_root))):
        if not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist")
    if config.stem == "sunrgbd_linear4_depth" and not args.test and not args.train_data_root:
        raise ValueError(
            "the SUN RGB-D column is the NYUv2 probe transferred: give --test NYUV2_HEAD.pth to test a finished one, "
            "or --train-data-root NYUV2 to train it (or probe sunrgbd_linear4_depth_train)"
        )
    options: dict[str, Any] = data_options(args.data_root, args.train_data_root, args.workers)
    iterations = args.iterations or (QUICK if args.quick else None)
    if iterations:
        options |= iteration_options(args.probe, iterations)
    options |= common_options(args)
    check_kind(args)
    suffix = "_fast" if args.fast else "_finetuned" if args.finetune else ""
    work_dir = args.work_dir or work_dir_of(config.stem + suffix, args.checkpoint)
    if is_sweep(args):
        whole = _changed_config(config, options, args)
        require_sweepable(whole)
        return run_sweep(whole, args, work_dir)
    if suffix:
        about = "features of fixed views, computed once" if args.fast else "the backbone trained too"
        whole = _changed_config(config, options, args)
        config, options = write_config(whole, work_dir / "config.py", f"{config.stem}: {about}."), {}
    action = ["--checkpoint", args.test] if args.test else []
    command = mim_command(
        "test" if args.test else "train", str(config), options, *action, *launch_options(args), work_dir=work_dir
    )
    return subprocess.run(command, env=os.environ, check=False).returncode


def common_options(args: argparse.Namespace) -> dict[str, Any]:
    """``--cfg-options`` that every probe takes, those of the command line last."""
    options: dict[str, Any] = {"model.backbone.checkpoint": args.checkpoint}
    for name, value in (("arch", args.arch), ("plugins", args.plugins), ("autocast", args.amp)):
        if value:
            options[f"model.backbone.{name}"] = value
    if args.seed is not None:
        options["randomness.seed"] = args.seed
    for option in args.cfg_options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--cfg-options {option!r} is not KEY=VALUE")
        options[key] = value
    return options


def launch_options(args: argparse.Namespace) -> list[str]:
    """Arguments of mim beside the options."""
    resume = ["--resume"] if args.resume and not args.test else []
    return resume + (["--launcher", "pytorch", "--gpus", str(args.gpus)] if args.gpus > 1 else [])


def check_kind(args: argparse.Namespace) -> None:
    """Refuse kinds of probes that exclude each other.

    Raises:
        ValueError: ``--fast`` with ``--finetune``, or options of the latter alone.
    """
    if args.fast and args.finetune:
        raise ValueError("--fast keeps features of a backbone that stays as it is: leave it out, or --finetune")
    if not args.finetune and (args.layer_decay is not None or args.drop_path is not None):
        raise ValueError("--layer-decay and --drop-path are of --finetune: add it")


def finetune(config: Any, args: argparse.Namespace) -> None:
    """Change a config as ``--finetune`` asks; before the options of the command line, which have the last word."""
    from ..probes.tuning import LAYER_DECAY, make_finetune

    make_finetune(config, LAYER_DECAY if args.layer_decay is None else args.layer_decay, args.drop_path or 0.0)


def _changed_config(config: Path, options: dict[str, Any], args: argparse.Namespace) -> Any:
    """The config of a fast probe, or of one that is fine-tuned, whole."""
    from mmengine.config import Config

    from ..probes.fast import make_fast
    from ..probes.run.runner import parsed_options

    whole = Config.fromfile(config)
    if args.finetune:
        finetune(whole, args)
    whole.merge_from_dict(parsed_options(options))
    if args.fast:
        make_fast(whole, views=args.views, store=str(args.store.absolute()))
    return whole


def work_dir_of(probe: str, checkpoint: str) -> Path:
    """``work_dirs/PROBE/checkpoint-1f0c94ab``."""
    return Path("work_dirs") / probe / name_of(Path(checkpoint))


def name_of(checkpoint: Path) -> str:
    """``checkpoint-1f0c94ab``: name and contents of a file or of a folder's files; every DINO run has the same name."""
    digest = hashlib.sha256()
    for file in sorted(checkpoint.rglob("*")) if checkpoint.is_dir() else [checkpoint]:
        if file.is_file():
            digest.update(bytes.fromhex(sha256(file)))
    return f"{checkpoint.resolve().stem}-{digest.hexdigest()[:8]}"
