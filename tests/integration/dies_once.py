"""Run a script in which rank 1 is killed at its seventh optimizer step, once: argv is a marker, then the script's."""

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import torch

marker = Path(sys.argv[1])
sys.argv = sys.argv[2:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
steps = 0
step = torch.optim.AdamW.step


def counted(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
    global steps
    steps += 1
    if steps == 7 and os.environ["RANK"] == "1" and not marker.exists():
        marker.write_text(os.environ["TORCHELASTIC_RESTART_COUNT"])
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)


setattr(torch.optim.AdamW, "step", counted)  # noqa: B010
runpy.run_path(sys.argv[0], run_name="__main__")
