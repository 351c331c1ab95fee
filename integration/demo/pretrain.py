"""Make the small pretrained weights that the demo starts from: DINO on rendered scenes, one ViT for every method.

python pretrain.py train --out runs --steps 1300 --methods softmax entmax15     # hours; the same command resumes
python pretrain.py write --out runs --to ../../attn_plugins/demo/weights        # half-precision safetensors

Methods start from the same weights and see the same crops, whether one process trains both or each has its own.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import attn_plugins
from attn_plugins.attention import sdpa
from attn_plugins.attention.call import AttentionCall
from attn_plugins.checkpoints import read
from attn_plugins.data.scenes import render
from attn_plugins.demo.pretrain import Method, Recipe, pretrain
from attn_plugins.files import write_text, written
from attn_plugins.progress import printed_progress

RECIPE = Recipe(
    batch_size=32,
    embed_dim=96,
    num_heads=3,
    local_size=24,
    learning_rate=7e-4,
    momentum=0.99,
    teacher_temperature=0.04,  # 0.06, as in longer runs, lets runs of a few thousand steps collapse
    bf16=True,
)
SIZE = (128, 160)
"""(H, W) of the scenes, pixels."""
TRAIN_SEED = 100
"""Of the scenes: what judges these weights, the demo included, renders with other seeds: pictures never seen."""


def train(args: argparse.Namespace) -> None:
    """Train until ``--steps``; a run that was killed goes on from its last state."""
    attn_plugins.register_backend(attn_plugins.Backend("sdpa_float32", _softmax_in_float32, _unless_bf16_softmax))
    files = _scenes(args.out / "scenes", args.scenes)
    recipe = replace(RECIPE, steps=args.steps, seed=args.seed)
    show = printed_progress("+".join(args.methods))
    for spec in args.methods:

        def progress(done: int, methods: Sequence[Method]) -> None:
            show(done, recipe.steps)
            if done % 20 == 0 and methods[0].losses:
                losses = ", ".join(f"{m.spec} {np.mean(m.losses[-20:]):.3f}" for m in methods)
                print(f"step {done}: loss {losses}; {methods[0].step_seconds:.2f} s a step", flush=True)

        pretrain(files, (spec,), recipe, args.out / f"{_slug(spec)}.pth", progress, save_every=50)


def write(args: argparse.Namespace) -> None:
    """Write each teacher's backbone as float16 safetensors, and how it was made beside it."""
    args.to.mkdir(parents=True, exist_ok=True)
    for path in sorted(args.out.glob("*.pth")):
        state = read(path)
        (spec,) = state["methods"]
        method = Method(spec, Recipe(**state["recipe"]))
        method.load(state["methods"][spec])
        tensors = {
            name: (t.half() if t.is_floating_point() else t).contiguous()
            for name, t in method.backbone.state_dict().items()
        }
        with written(args.to / f"{_slug(spec)}.safetensors") as partial:
            save_file(tensors, str(partial))
        record = {"spec": spec, "steps": state["step"], "recipe": asdict(method.recipe), "scenes": args.scenes}
        write_text(args.to / f"{_slug(spec)}.json", json.dumps(record, indent=1) + "\n")


def _softmax_in_float32(call: AttentionCall) -> Tensor:
    """torch's CPU kernel has a gradient in bfloat16 that takes four times as long as in float32."""
    with torch.autocast("cpu", enabled=False):
        whole = replace(call, query=call.query.float(), key=call.key.float(), value=call.value.float())
        return sdpa.run(whole).to(call.query.dtype)


def _unless_bf16_softmax(call: AttentionCall) -> str | None:
    fits = call.query.dtype == torch.bfloat16 and call.query.device.type == "cpu" and sdpa.unsupported(call) is None
    return None if fits else "it computes softmax of bfloat16 on the CPU"


def _scenes(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    show, files = printed_progress("scenes"), [folder / f"{index:05d}.png" for index in range(count)]
    for index, file in enumerate(files):
        if not file.exists():
            with written(file) as partial:
                Image.fromarray(render(TRAIN_SEED, index, SIZE).image).save(partial, "PNG")
        show(index + 1, count)
    return files


def _slug(spec: str) -> str:
    return re.sub(r"[^\w.]+", "-", spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "write"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: scenes and training states")
    parser.add_argument("--methods", nargs="+", default=["softmax", "entmax15"], metavar="SPEC")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--scenes", type=int, default=4000, help="rendered scenes to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, help="write: folder of the weights")
    args = parser.parse_args()
    if args.action == "write" and args.to is None:
        parser.error("write needs --to FOLDER")
    (train if args.action == "train" else write)(args)


if __name__ == "__main__":
    main()
