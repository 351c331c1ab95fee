"""``attn-plugins watch RUN -- COMMAND …``: probe or analyse each checkpoint of a training run as it appears."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..analysis.checkpoints_of import Numbered
    from ..analysis.evolution import Rows

__all__ = ["add_parser", "run"]

COMMANDS = ("probe", "analyze", "report")
LOG, COMMAND = "watch.log", "watch.txt"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "watch",
        help="probe or analyse each new checkpoint of a training run; curves and layer maps grow",
        description="Follow the folder of a training run. For each checkpoint in it, and each that appears, COMMAND is "
        "run (probe, analyze or report, without checkpoint and output). Curves, layer by step maps, a table and a page "
        "in --out grow. What was measured is not measured again. "
        "Example: attn-plugins watch RUN -- probe folder --images DIR --masks DIR --fast --layers 3 7 11",
    )
    parser.add_argument("training", metavar="RUN", type=Path, help="the folder that a trainer writes checkpoints to")
    parser.add_argument("command_words", metavar="COMMAND", nargs="+", help=f"behind --: {', '.join(COMMANDS)} …")
    parser.add_argument("--out", type=Path, help="for what is found (default: RUN/watch)")
    parser.add_argument("--once", action="store_true", help="take what is there and end, for cron")
    parser.add_argument("--every", type=float, default=60, help="seconds between two looks (default: %(default)g)")
    parser.add_argument(
        "--settle", type=float, default=60, help="a file is whole when it is unchanged for so long (%(default)g s)"
    )
    parser.add_argument("--retry", action="store_true", help="try again what could not be measured")
    parser.add_argument("--match", default="*", help="pattern of paths in RUN, e.g. 'eval/*' (default: all)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Follow the run until Ctrl-C; with ``--once`` the status is 1 where a new checkpoint could not be measured."""
    from filelock import FileLock, Timeout

    from ..analysis.checkpoints_of import find_checkpoints

    _check_command(args.command_words)
    out = args.out or args.training / "watch"
    find_checkpoints(args.training)  # whether it is there
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(out.resolve() / ".watch.lock"), timeout=0):
            return _follow(args, out)
    except Timeout as error:
        raise ValueError(
            f"another process watches {args.training} into {out}: end it, or choose another --out"
        ) from error
    except KeyboardInterrupt:
        print(f"ended; the same command goes on. What was found: {out / 'watch.html'}")
        return 0


def _check_command(words: Sequence[str]) -> None:
    """Have the command's own parser look at it, before a checkpoint is waited for.

    Raises:
        ValueError: it is none of those that are known.
    """
    from . import parser_of

    if words[0] not in COMMANDS:
        raise ValueError(f"{words[0]!r} is none of {', '.join(COMMANDS)}: attn-plugins watch RUN -- probe folder …")
    parser_of([words[0]]).parse_args(_words(words, Path("CHECKPOINT"), Path("OUT")))


def _words(words: Sequence[str], checkpoint: Path, out: Path) -> list[str]:
    """The command for one checkpoint."""
    kind, *rest = words
    if kind == "probe":
        return [kind, *rest, "--checkpoint", str(checkpoint), "--work-dir", str(out), "--resume"]
    if kind == "report":
        return [kind, str(checkpoint), *rest, "--out", str(out / "report.html")]
    return [kind, *rest[:1], str(checkpoint), *rest[1:], "--out", str(out)]


def _follow(args: argparse.Namespace, out: Path) -> int:
    from ..analysis.checkpoints_of import find_checkpoints
    from ..analysis.evolution import read_rows, write_evolution

    problems = 0
    before: dict[Path, Numbered] = {}
    command = shlex.join(["attn-plugins", "watch", str(args.training), "--", *args.command_words])
    rows = _kept(read_rows(out), out, command, args.retry)
    while True:
        found = find_checkpoints(args.training, args.match, leave_out=out)
        for one in found:
            if _known(one, args.training, rows) or not _settled(one, before.get(one.path), args.settle):
                continue
            new = _measure(one, args, out)
            problems += bool(new[0]["problem"])
            kept = [row for row in rows if row["file"] != new[0]["file"]]
            rows = sorted(kept + new, key=lambda row: (row["unit"], int(row["number"])))
            print(_said(new), flush=True)
            write_evolution(out, rows, args.training, command)
        if args.once:
            return int(bool(problems))
        before = {one.path: one for one in found}
        time.sleep(args.every)


def _kept(rows: Rows, out: Path, command: str, retry: bool) -> Rows:
    """What need not be measured again.

    Raises:
        ValueError: another command has measured into ``out``.
    """
    from ..files import write_text

    file = out / COMMAND
    before = file.read_text().strip() if file.exists() else command
    measured = [row for row in rows if not row["problem"]]
    if before != command and measured:
        raise ValueError(f"{out} holds what another command found:\n  {before}\nGive another --out")
    write_text(file, f"{command}\n")
    return rows if before == command and not retry else measured


def _known(one: Numbered, run: Path, rows: Rows) -> bool:
    """Whether these very bytes were measured, or tried."""
    told = (one.path.relative_to(run).as_posix(), str(one.size), str(one.changed))
    return any((row["file"], row["size"], row["changed"]) == told for row in rows)


def _settled(one: Numbered, before: Numbered | None, seconds: float) -> bool:
    """Whether nothing was written to it for a while: by its time, or since the last look (clocks of servers differ)."""
    return one == before or time.time() - one.changed / 1e9 >= seconds


def _measure(one: Numbered, args: argparse.Namespace, out: Path) -> Rows:
    from ..analysis.evolution import rows_of, values_below
    from ..checkpoints import CheckpointError, recorded_spec

    try:
        spec, _ = recorded_spec(one.path)
    except CheckpointError as error:
        return rows_of(one, args.training, None, [], str(error))
    folder = out / one.folder
    folder.mkdir(exist_ok=True)
    with (folder / LOG).open("wb") as log:
        command = [sys.executable, "-m", "attn_plugins", *_words(args.command_words, one.path, folder)]
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ, check=False).returncode
    if status:
        said = (folder / LOG).read_text(errors="replace").strip().splitlines()
        why = said[-1] if said else "it said nothing"
        return rows_of(one, args.training, spec, [], f"status {status}: {why} (see {folder / LOG})")
    try:
        values = values_below(folder)
    except ValueError as error:
        return rows_of(one, args.training, spec, [], str(error))
    problem = "" if values else f"the command left no number in {folder}"
    return rows_of(one, args.training, spec, values, problem)


def _said(rows: Rows) -> str:
    """One checkpoint in a line: what is of no layer, else the last layer's values."""
    first = rows[0]
    what = f"{first['unit']} {first['number']} ({first['file']}, {first['spec']})"
    if first["problem"]:
        return f"{what}: not measured, the others go on: {first['problem']}"
    last = max((int(row["layer"]) for row in rows if row["layer"]), default=None)
    shown = [row for row in rows if not row["layer"]] or [row for row in rows if row["layer"] == str(last)]
    where = f" in layer {last}" if shown[0]["layer"] else ""
    return f"{what}: " + ", ".join(f"{row['metric']} {float(row['value']):.4g}{where}" for row in shown[:4])
