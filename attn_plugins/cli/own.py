"""``attn-plugins probe folder``: from folders of pictures to a probe's result, with no config written by hand."""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .heads import is_sweep, require_sweepable, run_sweep
from .probe import QUICK, check_kind, common_options, finetune, launch_options, work_dir_of

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..data.own import Found
    from ..probes.run.folder import FolderData

    # The shipped probe that it is, its config, its data, how many images are trained on, what was found in the files.
    _Told = tuple[str, Config, FolderData, int, Found]

__all__ = ["data_name", "run_folder"]

_SHOWN = 12


def run_folder(args: argparse.Namespace) -> int:
    """Check the pictures, write the config, train, say what was reached."""
    from ..probes.run.command import mim_command
    from ..probes.run.folder import write_config

    if args.images is None:
        raise ValueError("--images is missing: a folder of pictures, beside --masks or --depth, or of class folders")
    if args.masks is not None and args.depth is not None:
        raise ValueError("--masks and --depth are two probes: run one after the other")
    if args.test:
        raise ValueError("--test is for data sets with a config; predict with `attn-plugins predict`")
    check_kind(args)
    is_sweep(args)  # refuses one that it cannot be, before the pictures are read
    config, about = _config(args)
    if is_sweep(args):
        require_sweepable(config)
    kind = "fast" if args.fast else "finetuned" if args.finetune else "linear"
    name = config.probe.partition(":")[2]
    work_dir = args.work_dir or work_dir_of(f"{name}_{kind}", args.checkpoint)
    for path in filter(None, (args.config_out, work_dir / "config.py")):
        written = write_config(config, path, about)
        print(f"config: {written}")
    if args.check:
        return 0
    if is_sweep(args):
        return run_sweep(config, args, work_dir)
    command = mim_command("train", str(work_dir / "config.py"), {}, *launch_options(args), work_dir=work_dir)
    status = subprocess.run(command, env=os.environ, check=False).returncode
    if status == 0:
        print(_reached(work_dir))
    return status


def _config(args: argparse.Namespace) -> tuple[Config, str]:
    """The whole config, and what stands on top of it."""
    from ..probes.fast import make_fast
    from ..probes.run.folder import default_iterations, set_iterations
    from ..probes.run.runner import parsed_options

    if args.masks is not None:
        base, config, data, train, found = _masks(args)
    elif args.depth is not None:
        base, config, data, train, found = _depth(args)
    else:
        base, config, data, train, found = _classes(args)
    if args.finetune:
        finetune(config, args)
    batch = config.train_cfg.total_batch_size
    steps = args.iterations or (QUICK if args.quick else default_iterations(train, batch, config.train_cfg.max_iters))
    set_iterations(config, base, steps, validations=1 if args.quick else 5)
    print(f"{steps} iterations of {batch} images ({steps * batch / train:.1f} passes over {train} images)")
    workers = min(os.cpu_count() or 1, 4) if args.workers is None else args.workers
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        config[loader].num_workers, config[loader].persistent_workers = workers, workers > 0
    options = common_options(args)
    options["model.backbone.checkpoint"] = str(Path(args.checkpoint).absolute())
    config.merge_from_dict(parsed_options(options))
    if args.fast:
        make_fast(config, views=args.views, scale=_fast_scale(args, found), store=str(args.store.absolute()))
    kind = "The backbone fine-tuned" if args.finetune else "A linear probe"
    about = (
        f"{kind} on {data.images}, as `attn-plugins probe folder` wrote it.\n"
        "Run it: mim train mmseg THIS_FILE --work-dir WORK_DIR"
    )
    return config, about


def _fast_scale(args: argparse.Namespace, found: Found) -> tuple[int, int] | None:
    """What images of segmentation are resized to; None of the others, which the fast probe takes as they are.

    Raises:
        ValueError: ``--size`` for one of those.
    """
    if args.masks is None:
        if args.size is not None:
            raise ValueError("--size is no option of the fast probe of depth and classes: leave it out")
        print(f"fast: {'images at their own size' if args.depth else 'centre crops'}; features in {args.store}")
        return None
    shortest = args.size or min(512, statistics.median_low([min(size) for size in found.sizes.elements()]))
    print(f"fast: shortest sides resized to {shortest} pixels; features in {args.store}")
    return 4 * shortest, shortest


def _masks(args: argparse.Namespace) -> _Told:
    from ..data.own import decide_classes, find_pairs, parse_values, scan_masks
    from ..probes.run.folder import masks_config
    from ..progress import printed_progress

    void = None if args.void is None else parse_values(args.void)
    pairs, problems = find_pairs(args.images, args.masks)
    found = scan_masks(pairs, printed_progress("checking"))
    found.problems[:0] = problems
    data, train = _parted(args, [pair.name for pair in pairs], found)
    classes = decide_classes(found, args.classes, void)
    void_text = ", ".join(map(str, classes.void)) or "none"
    print(f"{len(classes.names)} classes; void: {void_text} ({classes.void_from})")
    total = sum(found.pixels.values())
    for name, value in list(zip(classes.names, classes.values, strict=True))[: 2 * _SHOWN]:
        print(f"  {name:24} {100 * found.pixels[value] / total:6.2f} % of pixels, in {found.images[value]} images")
    absent = [n for n, v in zip(classes.names, classes.values, strict=True) if not found.images[v]]
    if absent:
        print(f"no image shows {', '.join(absent)}: left out of the mean")
    return "voc2012", masks_config(data, classes, args.size), data, train, found


def _depth(args: argparse.Namespace) -> _Told:
    from ..data.own import find_pairs, scan_depth
    from ..probes.run.folder import depth_config
    from ..progress import printed_progress

    pairs, problems = find_pairs(args.images, args.depth)
    found = scan_depth(pairs, printed_progress("checking"))
    found.problems[:0] = problems
    data, train = _parted(args, [pair.name for pair in pairs], found)
    low, high = min(map(_number, found.pixels)), max(map(_number, found.pixels))
    if not args.depth_scale:
        raise ValueError(
            f"the depth maps hold values from {low} to {high}, and nothing tells their unit: give --depth-scale, the "
            "stored units per metre (1000 for millimetres, 256 as KITTI's)"
        )
    far = args.max_depth or high / args.depth_scale
    print(
        f"depth from {low / args.depth_scale:.2f} to {high / args.depth_scale:.2f} m; the probe's bins end at {far:g} m"
    )
    side = (min(size[0] for size in found.sizes), min(size[1] for size in found.sizes))
    crop = (min(side[0], args.size or 416), min(side[1], args.size or 544))
    return "nyuv2", depth_config(data, args.depth_scale, far, crop), data, train, found


def _classes(args: argparse.Namespace) -> _Told:
    from ..data.own import find_images, scan_images
    from ..probes.run.folder import classes_config
    from ..progress import printed_progress

    files = find_images(args.images)
    loose = [path for name, path in files.items() if "/" not in name]
    names = sorted({name.split("/")[-2] for name in files if "/" in name})
    if loose or len(names) < 2:
        raise ValueError(
            f"{loose[0] if loose else args.images} lies in no class folder: give --masks DIR or --depth DIR for dense "
            f"probes, or {args.images}/CLASS/IMAGE with two classes or more"
        )
    found = scan_images(files, printed_progress("checking"))
    data, train = _parted(args, list(files), found)
    print(f"{len(names)} classes: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}")
    return "imagenet", classes_config(data, names), data, train, found


def _parted(args: argparse.Namespace, names: Sequence[str], found: Found) -> tuple[FolderData, int]:
    """The data, and how many images are trained on; stops at problems, telling all.

    Raises:
        ValueError: there are problems, and --skip-bad was not given.
    """
    from ..data.own import part_of
    from ..probes.run.folder import FolderData

    if (args.train_list is None) != (args.val_list is None):
        raise ValueError("--train-list and --val-list go together")
    lists = None if args.train_list is None else (str(args.train_list), str(args.val_list))
    kept = [name for name in names if name not in set(found.bad)]
    if not kept:
        raise ValueError(f"not one of {len(names)} pictures can be used. {found.problems[0]}")
    train, how_train = part_of(kept, "train", args.val_share, lists)
    val, how_val = part_of(kept, "val", args.val_share, lists)
    doubled = sorted(set(train) & set(val))
    if doubled:
        raise ValueError(f"{doubled[0]} is both trained and validated on ({len(doubled)} such names)")
    problems = found.problems + found.same_in_both(train, val)
    for problem in problems[:_SHOWN]:
        print(problem)
    if problems:
        more = f", {len(problems) - _SHOWN} of them not shown" if len(problems) > _SHOWN else ""
        if not args.skip_bad:
            raise ValueError(f"{len(problems)} problem(s){more}: correct them, or go on without with --skip-bad")
        print(f"{len(problems)} problem(s){more}: going on without {len(found.bad)} picture(s), as --skip-bad says")
    print(f"train: {len(train)} images ({how_train}); validation: {len(val)} ({how_val})")
    sizes = ", ".join(f"{h}x{w}" for (h, w), _ in found.sizes.most_common(3))
    print(f"sizes: {sizes}{' and others' if len(found.sizes) > 3 else ''}")
    name = args.name or data_name(args.images)
    data = FolderData(name, args.images, args.masks or args.depth, args.val_share, lists, tuple(found.bad))
    return data, len(train)


def data_name(images: Path) -> str:
    """The folder's name; of ``camvid/images``, its parent's."""
    folder = images.absolute()
    while folder.name.lower() in ("images", "imgs", "image", "img", "jpegimages", "rgb") and folder.parent.name:
        folder = folder.parent
    return re.sub(r"[^\w.-]+", "_", folder.name)


def _number(value: Any) -> int:
    return int(value)


def _reached(work_dir: Path) -> str:
    """The last result in words, and what can be done next."""
    from ..results import FILE_NAME, main_metric, read_result

    result = read_result(work_dir / FILE_NAME)
    last = result.evaluations_of("val")[-1]
    metric, _ = main_metric(last.metrics)
    return (
        f"{metric} {last.metrics[metric]:.2f} after {last.iteration} iterations, spec {result.backbone['plugins']}\n"
        f"  attn-plugins predict {work_dir} IMAGE …      # masks, overlays\n"
        f"  attn-plugins table {work_dir.parent}         # beside your other backbones"
    )
