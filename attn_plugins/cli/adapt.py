"""``attn-plugins adapt``: a pretrained backbone is distilled into a sparse one, from pictures without labels."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..adapt.recipe import Recipe

__all__ = ["add_parser", "run"]

HELD_OUT = 24


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "adapt",
        help="train a pretrained backbone to have its features under another normalizer, without labels",
        description="The model as it is teaches a copy of itself that has other plugins: its patch features, its [CLS] "
        "and the outputs of several blocks are learned from pictures without labels. Started again with the same "
        "options, a run that was killed goes on. Several processes: torchrun --nproc_per_node N -m attn_plugins adapt.",
    )
    parser.add_argument("checkpoint", type=Path, help="a file or folder, as `attn-plugins inspect` reads")
    parser.add_argument("--data", type=Path, required=True, help="image folder, or root of VOC, ImageNet, ADE20K, ...")
    parser.add_argument("--split", default="train", help="of the data set (default: %(default)s)")
    parser.add_argument("--plugins", default="entmax15", help="spec to adapt to (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write, in the format of the one given")
    parser.add_argument("--run", type=Path, help="folder of its snapshots, removed at the end (default: OUT.run)")
    parser.add_argument(
        "--held-out", type=int, default=HELD_OUT, help="pictures that are only measured on (default: %(default)s)"
    )
    parser.add_argument(
        "--snapshot-minutes", type=float, default=5.0, help="time between snapshots (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that read pictures (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    parser.add_argument("--arch", default="auto", help="where a checkpoint does not tell: timm/NAME, dinov2/NAME, ...")
    parser.add_argument("--repo", help="checkout of the official code, for dinov1/, dinov2/ and dinov3/")
    recipe = parser.add_argument_group("recipe")
    for option in dataclasses.fields(Recipe):
        recipe.add_argument(f"--{option.name.replace('_', '-')}", **_of(option))
    parser.set_defaults(func=run)


def _of(option: Any) -> dict[str, Any]:
    """How a field of the recipe is said on a command line."""
    default, told = option.default, option.metadata
    said = told["help"] if default in (None, ()) else f"{told['help']} (default: {default})"
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction, "default": default, "help": told["help"]}
    if isinstance(default, tuple):
        return {"type": int, "nargs": "+", "default": default, "help": said}
    kind = told.get("kind", str if default is None else type(default))
    return {"type": kind, "default": default, "help": said, "choices": told.get("choices")}


def run(args: argparse.Namespace) -> int:
    """Distil, write the checkpoint, and beside it what has changed."""
    with _processes(args.device) as device:
        return _adapt(args, device)


def _adapt(args: argparse.Namespace, device: str) -> int:
    import torch

    from ..adapt.distilling import distil
    from ..adapt.report import Report
    from ..adapt.running import place
    from ..adapt.snapshots import forget
    from ..analysis.images import find_images
    from ..checkpoints import Keeping, build, recorded_spec
    from ..codebases.features import ViTFeatures
    from ..progress import printed_progress
    from ..spec import parse

    told: dict[str, Any] = {option.name: getattr(args, option.name) for option in dataclasses.fields(Recipe)}
    recipe = Recipe(**(told | {name: tuple(told[name]) for name in ("sizes", "layers")}))
    spec, first = parse(args.plugins), place()[0] == 0
    images = find_images(args.data, args.split)
    if not 1 <= args.held_out < len(images):
        raise ValueError(f"--held-out {args.held_out}: of {len(images)} pictures; give 1 or more, and leave some")
    held = images.sample(args.held_out, recipe.seed)
    files = sorted(set(images.files) - set(held.files))
    model, about = build(args.arch, args.checkpoint, recorded_spec(args.checkpoint)[0] or "softmax", args.repo)
    keeping = Keeping.of(args.out, model, args.checkpoint, about)
    beside = [args.out.with_name(f"{args.out.name}.{suffix}") for suffix in ("json", "png")]
    for path in beside:
        if path.exists():
            raise FileExistsError(f"{path} is there already, and nothing is overwritten: choose another --out")
    model.to(device)
    folder = args.run or args.out.with_name(f"{args.out.name}.run")
    report = None
    if first:
        sizes = recipe.sizes or (14 * ViTFeatures(model).patch_size,)
        shown = [torch.cat([b.pixels for b in held.batches(size)]).to(device) for size in dict.fromkeys(sizes)]
        report = Report(model, shown, spec)
    done = distil(
        model,
        files,
        spec,
        recipe,
        folder=folder,
        snapshot_minutes=args.snapshot_minutes,
        workers=args.workers,
        begun=None if report is None else lambda begun: report.measure(recipe.start, begun),
        progress=printed_progress("adapt"),
    )
    if report is not None:
        report.measure("adapted", model)
        print(report)
        print(done)
        report.write(beside[0], done, checkpoint=str(args.checkpoint), sha256=about["sha256"], out=args.out.name)
        report.draw(beside[1])
        keeping.write(model.cpu())
        forget(folder)
        print(f"wrote {args.out} ({keeping.form}), {beside[0].name}, {beside[1].name}")
    return 0


@contextmanager
def _processes(asked: str | None) -> Iterator[str]:
    """The device of this process, and its group if torchrun has started several."""
    import torch

    cuda = torch.cuda.is_available() if asked is None else asked.startswith("cuda")
    local = os.environ.get("LOCAL_RANK")
    device = asked or ("cuda" if cuda else "cpu")
    if local is None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if cuda:
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()
