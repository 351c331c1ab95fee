"""The command line of the launcher."""

from __future__ import annotations

import argparse
import contextlib
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from ...checkpoints import agree, spec_inside
from ...patching import find_attention
from ...patching.record import refuse_others
from ...plugin_modules import ImportPlugins
from ...spec import parse
from .. import watching
from ..compat import keep_old_fsdp_names, read_own_checkpoints
from ..messages import say
from ..networks import patch_networks
from . import processes
from .construction import patch_as_built

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a trainer; its own exit status is passed on.

    Returns:
        0, or 1 if a spec was asked for and the trainer ended without having built a ViT to patch.
    """
    args, script = _parse(list(sys.argv[1:] if argv is None else argv))
    read_own_checkpoints()
    keep_old_fsdp_names()
    for variable, value in ((watching.MONITOR, args.monitor), (watching.EVERY, args.monitor_every)):
        if value is not None:
            os.environ[variable] = str(value)
    if args.attn_plugins is not None:
        args.attn_plugins = str(parse(args.attn_plugins))  # a typo ends here, not after the data has been read
    with contextlib.ExitStack() as stack:
        if args.device == "cpu":
            from . import cpu  # imports the compiler and, where it is installed, xformers

            stack.enter_context(cpu.instead_of_cuda())
        stack.enter_context(processes.only_by_torchrun(script))
        built = stack.enter_context(_patching(args.attn_plugins))
        _run(script)
    if args.attn_plugins is not None and not built:
        say(f"nothing was patched with {args.attn_plugins!r}: the script built no ViT with patch_embed and blocks.")
        return 1
    return 0


@contextlib.contextmanager
def _patching(spec: str | None) -> Iterator[list[str]]:
    """Patch what is built, and collect the names of its classes.

    Without a spec the script has the flag itself, or runs softmax: weights of another attention are refused.
    """
    built: list[str] = []

    def patch(model: nn.Module) -> None:
        if spec is None:
            refuse_others(model)
            return
        patch_networks(spec, model)
        built.append(type(model).__name__)
        layers = len(find_attention(model))
        say(f"{built[-1]} number {len(built)}: {layers} attention layers with {spec}")

    with patch_as_built(patch), _loading_only(spec):
        yield built


@contextlib.contextmanager
def _loading_only(spec: str | None) -> Iterator[None]:
    """Refuse to load weights of another spec, for trainers that take state dicts apart before they use them."""
    load = torch.load

    def checked(file: Any, *args: Any, **kwargs: Any) -> Any:
        contents = load(file, *args, **kwargs)
        agree(spec_inside(contents, str(file)), spec, str(file))
        return contents

    with mock.patch.object(torch, "load", checked):
        yield


def _run(script: list[str]) -> None:
    """Run ``SCRIPT ARGS…`` or ``-m MODULE ARGS…`` as ``python`` would, in this process."""
    module = script[0] == "-m"
    sys.argv = script[1:] if module else script
    sys.path.insert(0, str(Path.cwd() if module else Path(script[0]).resolve().parent))
    try:
        if module:
            runpy.run_module(script[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script[0], run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m attn_plugins.launch",
        usage="%(prog)s [--attn-plugins SPEC] [--monitor FILE.jsonl] [--import MODULE] [--device cpu] -- "
        "(SCRIPT | -m MODULE) [ARGS ...]",
        description="Run a trainer with every Vision Transformer that it builds patched as it is built.",
    )
    parser.add_argument("--attn-plugins", metavar="SPEC", help="e.g. entmax15; leave out if the script has the flag")
    parser.add_argument(
        "--device", choices=["cpu"], help="run a CUDA-only trainer on the CPU, to check that it runs, not to train"
    )
    parser.add_argument(
        "--monitor",
        metavar="SINK[,SINK]",
        help="write what attention looks like to FILE.jsonl, tensorboard:FOLDER or wandb, "
        f"as the variable {watching.MONITOR} does",
    )
    parser.add_argument("--monitor-every", type=int, metavar="N", help="steps from one observation to the next (100)")
    ImportPlugins.add_to(parser)
    split = argv.index("--") if "--" in argv else len(argv)
    args, script = parser.parse_args(argv[:split]), argv[split + 1 :]
    if not script or script == ["-m"]:
        parser.error("nothing to run: put the script or -m MODULE, with its arguments, after --")
    if script[0] != "-m" and not Path(script[0]).is_file():
        parser.error(f"no such script: {script[0]}")
    return args, script
