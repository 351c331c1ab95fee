"""A trainer that starts further Pythons itself would start them without the launcher, and train them unpatched."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["only_by_torchrun"]


@contextlib.contextmanager
def only_by_torchrun(script: Sequence[str]) -> Iterator[None]:
    """Refuse to start a second Python on the same script, as Lightning does for its other devices.

    Raises:
        RuntimeError: from the trainer's ``subprocess.Popen``, naming the remedy.
    """
    name = script[1] if script[0] == "-m" else str(Path(script[0]).resolve())
    active = True

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if not active or event != "subprocess.Popen":
            return
        command = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        words = [str(word) for word in command]
        if "python" in Path(words[0]).name and any(word == name or _same(word, name) for word in words[1:]):
            raise RuntimeError(
                "the trainer starts its other processes itself, and they would train without the plugins. Start them "
                "with: torchrun --nproc_per_node N -m attn_plugins.launch ... -- SCRIPT ..."
            )

    sys.addaudithook(refuse)
    try:
        yield
    finally:
        active = False  # an audit hook cannot be taken away


def _same(word: str, script: str) -> bool:
    return word.endswith(Path(script).name) and str(Path(word).resolve()) == script
