"""``attn-plugins sweep PROBE --checkpoints F G --specs A B``: a probe of each backbone under each spec, one table."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..plugin_modules import imported_names
from .probe import add_options, name_of

__all__ = ["add_parser", "run"]

COMMAND = "sweep.txt"
"""In the folder of a run: the command that it was started by."""
_OWN = ("checkpoints", "specs", "work_dir", "prints")
_NOT_THE_RESULT = ("gpus", "workers", "store")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "sweep",
        help="one probe of several checkpoints under several specs, and their table; resumable",
        description="One probe of every checkpoint under every spec, one after another, and a table of all. What is "
        "finished is not run again. With --print, the commands that are left, one a line, for a job array.",
    )
    own = parser.add_argument_group("what is swept over")
    own.add_argument("--checkpoints", nargs="+", required=True, metavar="FILE", help="backbones")
    own.add_argument("--specs", nargs="+", default=["auto"], metavar="SPEC", help="default: what each checkpoint tells")
    own.add_argument("--work-dir", type=Path, help="each run has a folder in it (default: work_dirs/PROBE)")
    own.add_argument("--print", dest="prints", action="store_true", help="print the commands that are left; run none")
    add_options(parser)
    parser.set_defaults(func=partial(run, parser))


@dataclass(frozen=True)
class _Run:
    """One probe: its folder, the words after ``attn-plugins``, and those of them that decide its result."""

    folder: Path
    words: tuple[str, ...]
    identity: str

    @property
    def finished(self) -> bool:
        """Whether it has come to its last iteration.

        Raises:
            ValueError: another command has left its run there, or its result is damaged.
        """
        from ..results import FILE_NAME, read_result

        if not (self.folder / FILE_NAME).exists():
            return False
        before = self.folder / COMMAND
        if before.exists() and before.read_text() != self.identity:
            raise ValueError(
                f"{self.folder} holds a run of another command:\n  {before.read_text().strip()}\nwhere this is\n"
                f"  {self.identity.strip()}\nGive another --work-dir, or remove that folder"
            )
        result = read_result(self.folder / FILE_NAME)
        done = result.evaluations_of("val")
        return bool(done) and done[-1].iteration >= result.max_iters


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run what is left and print the table; the status is 1 where a run failed."""
    runs = _planned(args, _words(parser, args, _OWN), _words(parser, args, (*_OWN, *_NOT_THE_RESULT)))
    left = [one for one in runs if not one.finished]
    if args.prints:
        print("".join(f"{shlex.join(['attn-plugins', *one.words])}\n" for one in left), end="")
        return 0
    failed = []
    for number, one in enumerate(left, 1):
        print(f"{len(runs) - len(left) + number} of {len(runs)}: {one.folder}", flush=True)
        if not _start(one):
            failed.append(one)
            print(f"failed, the others go on: {shlex.join(['attn-plugins', *one.words])}", file=sys.stderr)
    print(_table([one.folder for one in runs if one not in failed]), end="")
    return int(bool(failed))


def _start(one: _Run) -> bool:
    from ..files import write_text

    one.folder.mkdir(parents=True, exist_ok=True)
    write_text(one.folder / COMMAND, one.identity)
    command = [sys.executable, "-m", "attn_plugins", *one.words]
    return subprocess.run(command, env=os.environ, check=False).returncode == 0


def _table(folders: Sequence[Path]) -> str:
    from ..results import collect, render

    return render(collect(folders), "markdown", paper=False) if folders else ""


def _words(parser: argparse.ArgumentParser, args: argparse.Namespace, without: Sequence[str]) -> list[str]:
    """The options that were given, but for some, as words of a command; ``--import`` among them."""
    words = [word for name in imported_names() for word in ("--import", name)]
    for action in parser._actions:
        value = getattr(args, action.dest, action.default)
        if action.option_strings and action.dest not in without and value != action.default:
            words.append(action.option_strings[-1])
            if action.nargs != 0:
                words += map(str, value if isinstance(value, list) else [value])
    return words


def _planned(args: argparse.Namespace, options: Sequence[str], decisive: Sequence[str]) -> list[_Run]:
    """Every run, in order.

    Args:
        args: of the command.
        options: for each probe.
        decisive: those of them that its result depends on.

    Raises:
        FileNotFoundError: a checkpoint is not there.
        CheckpointError, UnknownPluginError: one cannot be read, or a spec is none, or contradicts what a file records.
        ValueError: two runs would have one folder.
    """
    from ..checkpoints import chosen_plugins

    missing = [name for name in args.checkpoints if not Path(name).exists()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)}: no such checkpoint")
    root = args.work_dir or Path("work_dirs") / _probe_name(args)
    runs: dict[Path, _Run] = {}
    for checkpoint in dict.fromkeys(args.checkpoints):
        for spec in dict.fromkeys(args.specs):
            chosen, _ = chosen_plugins(checkpoint, spec)
            folder = root / f"{name_of(Path(checkpoint))}-{_slug(chosen.spec)}"
            which = ["--checkpoint", checkpoint, *([] if spec == "auto" else ["--plugins", chosen.spec])]
            if folder in runs:
                raise ValueError(
                    f"{checkpoint} under {spec!r} would be in {folder}, as another of --checkpoints and --specs is: "
                    "name each once"
                )
            runs[folder] = _Run(
                folder,
                ("probe", args.probe, *options, *which, "--work-dir", str(folder), "--resume"),
                shlex.join(["probe", args.probe, *decisive, *which]) + "\n",
            )
    return list(runs.values())


def _probe_name(args: argparse.Namespace) -> str:
    from .own import data_name

    if args.probe == "folder" and args.images is None:
        raise ValueError("--images is missing: a folder of pictures, beside --masks or --depth, or of class folders")
    name = (args.name or data_name(args.images)) if args.probe == "folder" else Path(args.probe).stem
    return f"{name}_{'fast' if args.fast else 'linear'}"


def _slug(spec: str) -> str:
    """A spec as a part of a folder's name."""
    return re.sub(r"[^\w.=@-]+", "_", spec)
