"""Make the small pretrained weights that the demo starts from: DINO on pictures of one object, a ViT for each method.

python pretrain.py train --out runs --until 6400                                # hours; the same command resumes
python pretrain.py write --out runs --to ../../attn_plugins/demo/weights        # folders of timm's hub

Methods start from the same weights and see the same crops, whether one process trains both or each has its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import attn_plugins
from attn_plugins.attention import sdpa
from attn_plugins.attention.call import AttentionCall
from attn_plugins.checkpoints import read
from attn_plugins.data.scenes import render
from attn_plugins.demo.pretrain import ARCH, Method, Recipe, pretrain
from attn_plugins.files import write_text, written
from attn_plugins.patching.record import METADATA_KEY
from attn_plugins.progress import printed_progress

RECIPE = Recipe(
    steps=12_000,
    batch_size=64,
    embed_dim=96,
    num_heads=3,
    learning_rate=1e-3,
    momentum=0.99,
    teacher_temperature=0.04,
    bf16=True,
    views={
        "global_crop_scale": (0.35, 1.0),
        "local_crop_scale": (0.1, 0.35),
        "cj_hue": 0.2,  # as usual: with twice as much there was nothing left that is learned in hundreds of steps
        "cj_sat": 0.4,
        "random_gray_scale": 0.1,
        "gaussian_blur": (0.3, 0.1, 0.1),
        "solarization_prob": 0.0,
    },
)
SIZE = (128, 160)
"""(H, W) of the scenes, pixels."""
MARGIN, LEAST = 0.15, 30
"""Around an object, as a share of its longer side; and the shorter side of an object that is taken, in pixels."""
TRAIN_SEED = 100
"""Of the scenes: what judges these weights, the demo included, renders with other seeds: pictures never seen."""


def train(args: argparse.Namespace) -> None:
    """Train until ``--steps``; a run that was killed goes on from its last state."""
    attn_plugins.register_backend(attn_plugins.Backend("sdpa_float32", _softmax_in_float32, _unless_bf16_softmax))
    files = _pictures(args.out / "pictures", args.pictures)
    recipe = replace(RECIPE, steps=args.steps or RECIPE.steps, seed=args.seed)
    show = printed_progress("+".join(args.methods))
    for spec in args.methods:

        def progress(done: int, methods: Sequence[Method]) -> None:
            show(done, recipe.steps)
            if done % 20 == 0 and methods[0].losses:
                losses = ", ".join(f"{m.spec} {np.mean(m.losses[-20:]):.3f}" for m in methods)
                print(f"step {done}: loss {losses}; {methods[0].step_seconds:.2f} s a step", flush=True)

        pretrain(files, (spec,), recipe, args.out / f"{_slug(spec)}.pth", progress, 50, args.until)


def write(args: argparse.Namespace) -> None:
    """Write each teacher's backbone as a folder of timm's hub, in float16, and how it was made in its config."""
    for path in sorted(args.out.glob("*.pth")):
        state = read(path)
        (spec,) = state["methods"]
        method = Method(spec, Recipe(**state["recipe"]))
        method.load(state["methods"][spec])
        folder = args.to / _slug(spec)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: (t.half() if t.is_floating_point() else t).contiguous()
            for name, t in method.backbone.state_dict().items()
        }
        with written(folder / "model.safetensors") as partial:
            save_file(tensors, str(partial), metadata={"format": "pt"})
        config = {
            "architecture": ARCH.partition("/")[2],
            "num_classes": 0,
            "model_args": method.recipe.arch_options,
            METADATA_KEY: {"spec": spec},
            "made_by": {"steps": state["step"], "pictures": args.pictures, "recipe": asdict(method.recipe)},
        }
        write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")


def _softmax_in_float32(call: AttentionCall) -> Tensor:
    """torch's CPU kernel has a gradient in bfloat16 that takes four times as long as in float32."""
    with torch.autocast("cpu", enabled=False):
        whole = replace(call, query=call.query.float(), key=call.key.float(), value=call.value.float())
        return sdpa.run(whole).to(call.query.dtype)


def _unless_bf16_softmax(call: AttentionCall) -> str | None:
    fits = call.query.dtype == torch.bfloat16 and call.query.device.type == "cpu" and sdpa.unsupported(call) is None
    return None if fits else "it computes softmax of bfloat16 on the CPU"


def _pictures(folder: Path, count: int) -> list[Path]:
    """Squares around the objects of rendered scenes: what ImageNet is to the official recipe."""
    complete = folder / "complete"
    files = [folder / f"{index:05d}.png" for index in range(count)]
    if complete.exists() and complete.read_text() == str(count):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    show, made = printed_progress("pictures"), 0
    for index in itertools.count():
        for picture in _objects(index)[: count - made]:
            with written(files[made]) as partial:
                Image.fromarray(picture).save(partial, "PNG")
            made += 1
            show(made, count)
        if made == count:
            write_text(complete, str(count))
            return files


def _objects(index: int) -> list[NDArray[np.uint8]]:
    scene, found = render(TRAIN_SEED, index, SIZE), []
    for box in scene.boxes:
        width, height = box.xmax - box.xmin, box.ymax - box.ymin
        if min(width, height) < LEAST:
            continue
        half = max(width, height) * (0.5 + MARGIN)
        x, y = (box.xmin + box.xmax) / 2, (box.ymin + box.ymax) / 2
        rows = slice(int(max(y - half, 0)), int(min(y + half, SIZE[0])))
        found.append(scene.image[rows, int(max(x - half, 0)) : int(min(x + half, SIZE[1]))])
    return found


def _slug(spec: str) -> str:
    return re.sub(r"[^\w.]+", "-", spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "write"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: pictures and training states")
    parser.add_argument("--methods", nargs="+", default=["softmax", "entmax15"], metavar="SPEC")
    parser.add_argument("--steps", type=int, help=f"default: {RECIPE.steps}")
    parser.add_argument("--until", type=int, metavar="STEP", help="stop there, with the schedules of --steps under way")
    parser.add_argument("--pictures", type=int, default=6000, help="of rendered objects, to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, help="write: folder of the weights")
    args = parser.parse_args()
    if args.action == "write" and args.to is None:
        parser.error("write needs --to FOLDER")
    (train if args.action == "train" else write)(args)


if __name__ == "__main__":
    main()
